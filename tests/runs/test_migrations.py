"""Checkpoints of format 1, as they were written, still load; formats and fields that are not known are named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from statevla.encoders.vision import load_backbone
from statevla.runs.files import MODEL, load_strict, read_tensors
from statevla.runs.migrations import FORMAT, MIGRATIONS
from statevla.runs.state import read_state
from statevla.systems.system import Given
from statevla.systems.table import SYSTEMS, config_of, system_of
from stores.errors import StoreCorrupt, UsageError

OLD = Path(__file__).parents[1] / "fixtures/checkpoint_format1"


@pytest.mark.parametrize("row", SYSTEMS[:2], ids=lambda row: row.name)
def test_a_checkpoint_of_format_1_builds_its_model_and_takes_its_weights(row: Any) -> None:
    folder = OLD / row.folder
    state = read_state(folder)
    assert (state.format, state.system, state.step) == (FORMAT, row.name, 2)
    config = config_of(state, folder)
    assert (config.model.embed_dim, config.model.encoder_depth, config.model.action_seq_len) == (8, 1, 10)
    assert config.training.phase1.temporal_predictor_hidden_dim == 8
    assert (config.training.ema_momentum, config.training.phase1.learning_rate) == (0.996, 1e-3)
    assert config.training.phase1.inverse_dynamics_weight == 1
    assert config.training.phase1.regularize == "z_next"
    model = row.build(config, Given(backbone=load_backbone(config.model)))
    tensors = read_tensors(folder, state, MODEL)
    load_strict(model, tensors, str(folder))
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    parent = None if row.kind == "encoder" else "temporal_jepa"
    assert (state.parent or {}).get("system") == parent
    assert state.finished


def rewritten(tmp_path: Path, change: Any) -> Path:
    folder = Path(shutil.copytree(OLD / SYSTEMS[0].folder, tmp_path / "c"))
    tree = json.loads((folder / "state.json").read_text())
    change(tree)
    (folder / "state.json").write_text(json.dumps(tree))
    return folder


def as_newest(tree: dict[str, Any]) -> None:
    for number in range(1, FORMAT):
        new = {**MIGRATIONS[number](tree), "format": number + 1}
        tree.clear()
        tree.update(new)


def test_a_format_of_the_future_is_named(tmp_path: Path) -> None:
    folder = rewritten(tmp_path, lambda tree: tree.update(format=FORMAT + 1, code_version="9.9", novelty=1))
    with pytest.raises(StoreCorrupt, match=rf"format {FORMAT + 1}, written by statevla 9\.9; .*up to {FORMAT}"):
        read_state(folder)


@pytest.mark.parametrize("number", [None, "1", 0, True])
def test_a_format_that_is_no_number_is_refused(tmp_path: Path, number: object) -> None:
    with pytest.raises(StoreCorrupt, match="expected a format number"):
        read_state(rewritten(tmp_path, lambda tree: tree.update(format=number)))


def test_a_field_that_is_missing_in_an_old_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreCorrupt, match=r"not a whole checkpoint of format 1: KeyError\('width'\)"):
        read_state(rewritten(tmp_path, lambda tree: tree["config"]["model"].pop("width")))


def test_a_missing_configuration_key_is_an_error_that_names_the_version(tmp_path: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        as_newest(tree)
        del tree["config"]["model"]["d_state"]

    folder = rewritten(tmp_path, change)
    with pytest.raises(StoreCorrupt, match=rf"format {FORMAT}, statevla 0\.1\.0\).*lacks \['model\.d_state'\]"):
        config_of(read_state(folder), folder)


def test_a_system_that_this_version_does_not_have_is_named(tmp_path: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        as_newest(tree)
        tree["system"] = "novel"

    folder = rewritten(tmp_path, change)
    with pytest.raises(UsageError, match="'novel': expected one of temporal_jepa, flow_matching"):
        system_of(read_state(folder), folder)


def test_a_stamo_before_towers_had_a_stem() -> None:
    before = {"config": {"data": {}, "stamo": {"features": 192, "depth": 2}}}
    now = MIGRATIONS[11](before)["config"]["stamo"]
    assert (now["stem_width"], now["features"], now["depth"]) == (192, "conv", 2)
    assert before["config"]["stamo"]["features"] == 192
    assert set(MIGRATIONS[11]({"config": {"data": {}}})["config"]) == {"data"}


def test_patches_before_stems_were_one_convolution() -> None:
    old = {"config": {"vla": {"width": 64}, "goal": {"width": 64}, "model": {}}}
    assert MIGRATIONS[12](old)["config"] == {
        "vla": {"width": 64, "stem": "patch"}, "goal": {"width": 64, "stem": "patch"}, "model": {},
    }  # fmt: skip
    assert "stem" not in old["config"]["vla"]


def test_labelled_steps_were_drawn_once() -> None:
    old = {"config": {"data": {"labelled_share": 0.2}}}
    assert MIGRATIONS[13](old)["config"]["data"] == {"labelled_share": 0.2, "labelled_times": 1}
    assert "labelled_times" not in old["config"]["data"]


def test_an_encoder_before_stems_had_one_convolution_a_patch() -> None:
    old = {"config": {"model": {"vision": "conv"}}}
    assert MIGRATIONS[14](old)["config"]["model"] == {"vision": "conv", "stem": "patch"}
    assert "stem" not in old["config"]["model"]


def test_the_flow_matching_policy_foretold_nothing() -> None:
    old = {"config": {"training": {"phase2": {"num_epochs": 3}}}}
    assert MIGRATIONS[15](old)["config"]["training"]["phase2"] == {
        "num_epochs": 3, "world_target": "none", "world_weight": 0.1, "world_horizon": None, "world_shuffled": False,
    }  # fmt: skip
    assert old["config"]["training"]["phase2"] == {"num_epochs": 3}


def test_no_head_foretold_motions() -> None:
    old = {"config": {"training": {"phase2": {}}, "film": {"hidden": 8}, "stamo": {}}}
    now = MIGRATIONS[16](old)["config"]
    assert (now["training"]["phase2"], now["film"]) == ({"world_components": 0}, {"hidden": 8, "world_components": 0})
    assert (now["stamo"], old["config"]["film"]) == ({}, {"hidden": 8})


def test_no_latent_action_was_learned() -> None:
    old = {"config": {"training": {"phase2": {}}, "act": {"width": 8}}}
    now = MIGRATIONS[17](old)["config"]
    assert (now["training"]["phase2"], now["act"]) == ({"world_code": 16}, {"width": 8, "world_code": 16})
    assert old["config"]["act"] == {"width": 8}


def test_a_pretrained_painter_was_trained_whole() -> None:
    old = {"config": {"stamo": {"decoder": "sd3"}}}
    assert MIGRATIONS[18](old)["config"]["stamo"] == {"decoder": "sd3", "sd3_lora": 0}
    assert MIGRATIONS[18]({"config": {"data": {}}})["config"] == {"data": {}}
    assert old["config"]["stamo"] == {"decoder": "sd3"}


def test_no_policy_saw_by_a_tower_and_nothing_said_how_demonstrations_were_made() -> None:
    old = {"config": {"film": {"hidden": 8}, "act": {}, "vla": {}, "goal": {}}}
    now = MIGRATIONS[19](old)
    assert now["made_by"] == {}
    saw = {"vision": "conv"}
    assert now["config"] == {"film": {"hidden": 8, **saw}, "act": saw, "vla": saw, "goal": {}}
    assert old == {"config": {"film": {"hidden": 8}, "act": {}, "vla": {}, "goal": {}}}


def test_act_saw_pictures_and_heard_in_its_memory_and_no_goal_policy_saw_by_a_tower() -> None:
    old = {"config": {"act": {"width": 8}, "goal": {"width": 8}, "film": {}}}
    assert MIGRATIONS[20](old)["config"] == {
        "act": {"width": 8, "observation": "images", "resnet_model": None, "instruction": "memory"},
        "goal": {"width": 8, "vision": "conv"}, "film": {},
    }  # fmt: skip
    assert old["config"]["act"] == {"width": 8}


def test_levels_of_noise_were_drawn_uniformly() -> None:
    old = {"config": {"stamo": {"width": 8}, "act": {}}}
    assert MIGRATIONS[22](old)["config"] == {"stamo": {"width": 8, "levels": "uniform"}, "act": {}}
    assert old["config"]["stamo"] == {"width": 8}


def test_readouts_were_not_told_the_instruction() -> None:
    old = {"config": {"vla": {"width": 8}, "act": {}}}
    assert MIGRATIONS[21](old)["config"] == {"vla": {"width": 8, "instruction": "token"}, "act": {}}
    assert old["config"]["vla"] == {"width": 8}
