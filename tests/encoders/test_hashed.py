"""The hashed encoder: deterministic, unit norm, tells the texts of a suite apart, honest about empty text."""

import subprocess
import sys

import numpy as np
import pytest

from statevla.encoders.hashed import embed_text, encode_hashed
from statevla.encoders.table import load_text_encoder
from stores.errors import UsageError

TEXTS = [f"pick the {thing} and place it in the basket" for thing in ("milk", "butter", "ketchup", "bbq sauce")]


def test_shape_dtype_and_unit_norm() -> None:
    vectors = encode_hashed(TEXTS)
    assert vectors.shape == (4, 512)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_same_bits_in_another_process_with_another_hash_seed() -> None:
    code = (
        "from statevla.encoders.hashed import embed_text; import sys; "
        "sys.stdout.write(embed_text('put the red cup left').tobytes().hex())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert bytes.fromhex(result.stdout) == embed_text("put the red cup left").tobytes()


def test_case_and_punctuation_do_not_matter_but_order_does() -> None:
    np.testing.assert_array_equal(embed_text("Put the Cup, left."), embed_text("put the cup left"))
    assert embed_text("cup left of bowl") @ embed_text("bowl left of cup") < 0.9


def test_tasks_of_a_suite_differ_and_share() -> None:
    similarity = encode_hashed(TEXTS) @ encode_hashed(TEXTS).T
    off_diagonal = similarity[~np.eye(len(TEXTS), dtype=bool)]
    assert off_diagonal.max() < 0.95
    assert off_diagonal.min() > 0.2


def test_refuses_text_without_words_and_weights_it_does_not_have() -> None:
    with pytest.raises(UsageError, match="at least one word"):
        encode_hashed(["?!"])
    with pytest.raises(UsageError, match="no weights"):
        load_text_encoder("hashed", "some/model")
    with pytest.raises(UsageError, match="clip, minilm, hashed"):
        load_text_encoder("bert")
