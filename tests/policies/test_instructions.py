"""A policy's own text encoder is found by what the checkpoint records, and refused when it is another."""

import numpy as np
import pytest

from statevla.encoders.hashed import ENCODER, REVISION, encode_hashed
from statevla.policies.instructions import embed, encoder_of
from stores.errors import StaleKey, UsageError

KNOWN = ["put the red block in the blue bowl", "put the green block in the yellow bowl"]


def test_the_recorded_encoder_is_loaded() -> None:
    encoder = encoder_of({"encoder": ENCODER, "revision": REVISION})
    known = dict(zip(KNOWN, encode_hashed(KNOWN), strict=True))
    nearest = embed("put the red block in a blue bowl", known, encoder)
    assert nearest.instruction == KNOWN[0]
    assert 0.5 < nearest.cosine < 1
    np.testing.assert_array_equal(nearest.vector, encode_hashed(["put the red block in a blue bowl"])[0])


def test_another_revision_or_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(StaleKey, match="trained with 0, here is 1"):
        encoder_of({"encoder": ENCODER, "revision": "0"})
    with pytest.raises(UsageError, match="mystery"):
        encoder_of({"encoder": "mystery:v2", "revision": "1"})
