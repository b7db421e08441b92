"""Parameter counts, as the design's table has them."""

import dataclasses

import pytest

from statevla.config import PRESETS, load_config
from statevla.systems.describe import count, describe, key_lines, list_keys
from statevla.systems.flow_matching import PolicyModel
from statevla.systems.temporal_jepa import JepaModel
from stores.errors import UsageError
from tests.models.build import micro

BASE = {
    "tokenizer": 695_552,
    "context_encoder": 5_256_960,
    "state_projection": 66_304,
    "temporal_predictor": 1_056_512,
    "flow_policy": 1_805_062,
    "gripper_classifier": 134_154,
}


@pytest.mark.parametrize("vision", ["conv", "siglip"])
def test_base_has_the_designs_counts(vision: str) -> None:
    description = describe(load_config("base", overrides=(f"model.vision={vision}",)))
    assert description["parts"] == BASE
    assert description["trainable"] == sum(BASE.values())
    assert description["total"] == sum(BASE.values()) + BASE["context_encoder"]


def test_original_has_the_documents_counts() -> None:
    description = describe(PRESETS["original"])
    assert description["parts"] == BASE | {"flow_policy": 2_395_654}
    assert description["total"] == 14_862_096
    without_policy = description["total"] - 2_395_654 - BASE["gripper_classifier"]
    assert without_policy == 12_332_288


@pytest.mark.parametrize("context", ["z", "z+tokens"])
def test_the_table_adds_up_to_what_trains(context: str) -> None:
    config = micro(f"model.policy_context={context}", "training.phase1.inverse_dynamics_weight=0.1")
    description = describe(config)
    jepa = JepaModel(config)
    in_phase_1 = sum(p.numel() for p in jepa.parameters() if p.requires_grad)
    policy = PolicyModel(config, jepa.encoder)
    in_phase_2 = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert in_phase_1 + in_phase_2 == description["trainable"]
    assert count(jepa.target) == count(jepa.encoder)


def test_width_must_suit_the_sinusoid_and_the_heads() -> None:
    config = PRESETS["tiny"]
    with pytest.raises(UsageError, match=r"model\.embed_dim: 130"):
        dataclasses.replace(config, model=dataclasses.replace(config.model, embed_dim=130))


def test_the_list_of_keys_fits_a_terminal_without_losing_a_word() -> None:
    rows = list_keys(load_config("tiny", None, ()))
    whole, narrow = key_lines(rows), key_lines(rows, 80)
    assert len(whole) == len(rows)
    assert max(map(len, narrow)) <= 80
    assert " ".join(" ".join(narrow).split()) == " ".join(" ".join(whole).split())
