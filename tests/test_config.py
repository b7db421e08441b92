"""Configuration: presets, YAML, overrides and their errors."""

import re

import pytest

from statevla.config import PRESETS, Config, flatten, from_dict, load_config
from statevla.config.load import EARLIER_NAMES
from statevla.config.options import keys
from stores.errors import StoreCorrupt, UsageError


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
        ("training.lr=1", "did you mean 'training.learning_rate'"),
        ("training.wd=1", "did you mean 'training.weight_decay'"),
        ("training.phase1.learning_rat=1", "did you mean 'training.phase1.learning_rate'"),
        ("training.batch_size=many", "expected int, got 'many'"),
        ("training.batch_size=0", "1 or more"),
        ("training.batch_size", "KEY=VALUE"),
        ("training.batch_size=true", "expected int"),
        ("model.image_size=100", "not a multiple of model.patch_size"),
        ("training.phase2.learning_rate=-1", "positive"),
        ("training.phase1.learning_rate=.nan", r"training.phase1.learning_rate: expected a positive number, got nan"),
        ("training.gradient_clip=.inf", r"training.gradient_clip: expected a positive number, got inf"),
        ("training.ema_momentum=1.5", r"training.ema_momentum: expected 0 or more and at most 1, got 1.5"),
        ("training.ema_momentum_schedule=linear", "expected one of cosine"),
        ("training.seed=-1", "0 or more"),
        ("model.state_dim=128", r"model.state_dim: 128, but model.embed_dim has 64; this key only says it again"),
        ("model.predictor_width=32", "unknown configuration key"),
        ("model.stem=round", "model.stem: "),
        ("training.phase1.gripper_weight=2", r"did you mean training.phase2.gripper_weight"),
        ("training.phase1.inverse_dynamics_horizon=11", r"11 is more than model.action_seq_len 10"),
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


def test_a_frozen_tower_has_one_picture_size():
    with pytest.raises(UsageError, match=r"takes pictures of 224 pixels in patches of 16, got 128 and 16; use --set"):
        load_config("small", None, ("model.vision=siglip",))
    load_config("base", None, ("model.vision=siglip",))
    with pytest.raises(UsageError, match=r"model\.stem: conv is for model\.vision=conv.*; set model\.stem=patch"):
        load_config("base", None, ("model.vision=siglip", "model.stem=conv"))
    load_config("small", None, ("model.vision=siglip", "model.vision_model=my/tower"))


def test_the_common_rate_holds_where_a_system_does_not_give_its_own(tmp_path):
    def rates(*overrides, file=None):
        training = load_config("base", file, overrides).training
        return training.phase1.learning_rate, training.phase2.learning_rate

    assert rates() == (1e-4, 5e-5)
    assert rates("training.learning_rate=1e-3") == (1e-3, 1e-3)
    assert rates("training.learning_rate=1e-3", "training.phase2.learning_rate=2e-3") == (1e-3, 2e-3)
    file = tmp_path / "run.yaml"
    file.write_text("training: {phase1: {learning_rate: 7e-3}}")
    assert rates("training.learning_rate=1e-3", file=file) == (7e-3, 1e-3)


def test_every_key_has_its_range_and_a_line_of_help():
    for name, part in Config().parts().items():
        listed = {key.name: key.option for key in keys(part, f"{name}.")}
        assert set(listed) == {key for key in flatten(Config().to_dict()) if key.startswith(f"{name}.")}
        for key, option in listed.items():
            assert option.help, key
            assert "\n" not in option.help, key


def test_a_checkpoints_configuration_must_be_whole():
    tree = Config().to_dict()
    del tree["model"]["d_state"]
    tree["model"]["d_sate"] = 16
    with pytest.raises(StoreCorrupt, match=r"here: .* lacks \['model.d_state'\] .* unknown keys \['model.d_sate'\]"):
        from_dict(tree, where="here")


@pytest.mark.parametrize(("old", "new"), sorted(EARLIER_NAMES.items()))
def test_an_earlier_name_of_a_key_is_refused_with_the_one_of_today(old: str, new: str) -> None:
    assert new in flatten(load_config("tiny").to_dict())
    with pytest.raises(UsageError, match=re.escape(f"unknown configuration key {old!r}; it is {new!r} now")):
        load_config("tiny", None, (f"{old}=1",))
