"""Configuration: presets, YAML, overrides and their errors."""

import pytest

from statevla.config import PRESETS, Config, flatten, from_dict, load_config
from stores.errors import UsageError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_round_trips_through_a_plain_dict(name):
    assert from_dict(PRESETS[name].to_dict()) == PRESETS[name]


def test_defaults_are_the_documented_ones():
    flat = flatten(Config().to_dict())
    documented = {
        "training.batch_size": 64,
        "training.phase1.learning_rate": 1e-4,
        "training.phase2.learning_rate": 5e-5,
        "training.weight_decay": 0.05,
        "training.gradient_clip": 1.0,
        "training.phase1.num_epochs": 1000,
        "training.phase2.num_epochs": 1000,
        "training.save_interval": 100,
        "training.log_interval": 10,
        "training.ema_momentum": 0.996,
        "training.phase1.covariance_weight": 0.04,
    }
    assert {key: flat[key] for key in documented} == documented


def test_file_then_overrides(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("training:\n  batch_size: 8\n  phase1: {learning_rate: 1e-3}\n")
    config = load_config("tiny", file, ("training.batch_size=16", "training.max_steps=7", "data.store=some/where"))
    assert (config.training.batch_size, config.training.max_steps) == (16, 7)
    assert config.training.phase1.learning_rate == 1e-3
    assert config.data.store == "some/where"
    assert config.model == PRESETS["tiny"].model


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("training.phase1.learning_rat=1", "did you mean 'training.phase1.learning_rate'"),
        ("training.batch_size=many", "expected int, got 'many'"),
        ("training.batch_size=0", "1 or more"),
        ("training.batch_size", "KEY=VALUE"),
        ("training.batch_size=true", "expected int"),
        ("model.vision=vit", "expected one of conv, siglip"),
        ("model.image_size=100", "not a multiple of model.patch_size"),
        ("training.phase2.learning_rate=-1", "positive"),
    ],
)
def test_bad_overrides_name_the_key(override, complaint):
    with pytest.raises(UsageError, match=complaint):
        load_config("tiny", None, (override,))


def test_bad_files_and_presets(tmp_path):
    with pytest.raises(UsageError, match="no such configuration file"):
        load_config("tiny", tmp_path / "none.yaml")
    listing = tmp_path / "list.yaml"
    listing.write_text("- 1\n")
    with pytest.raises(UsageError, match="expected a mapping"):
        load_config("tiny", listing)
    with pytest.raises(UsageError, match="base, original, small, tiny"):
        load_config("huge")


def test_yaml_cannot_build_objects(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text("training: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UsageError, match="could not determine a constructor"):
        load_config("tiny", file)
