"""What a user says and the training of that system would not see is refused; recipes and recorded runs may say more."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from statevla.config.load import flatten
from statevla.policies.policy import Policy
from statevla.systems.table import SYSTEMS, find_system, sections
from statevla.trainers.command import TrainFlags, run_training
from statevla.trainers.jobs import ask
from statevla.trainers.said import require_used
from stores.errors import UsageError
from tests.trainers.micro import micro_store

QUIET: Callable[[str], None] = [].append


def say(system: str, *overrides: str, file: Path | None = None, recipe: str | None = None) -> None:
    row = find_system(system)
    request = ask(row, None if recipe else "tiny", recipe, file, overrides)
    require_used(row, request.config(sections()), request)


@pytest.mark.parametrize(("system", "key", "named"), [
    ("film", "act.kl_weight=2", r"act\.kl_weight: not seen by film as it is configured; leave it out"),
    ("film", "model.image_size=64", r"model\.image_size: not seen by film .*, which has film\.image_size; leave it"),
    ("film", "model.vision_width=24", r"model\.vision_width: not seen by film"),
    ("act", "training.phase2.gripper_weight=2", r"training\.phase2\.gripper_weight: not seen by act .*act\.gripper"),
    ("vla", "training.ema_momentum=0.9", r"training\.ema_momentum: not seen by vla"),
    ("film", "stamo.width=64", r"stamo\.width: not seen by film"),
    ("stamo", "model.patch_size=4", r"model\.patch_size: not seen by stamo .*, which has stamo\.patch_size"),
    ("temporal_jepa", "film.hidden=64", r"film\.hidden: not seen by temporal_jepa"),
    ("temporal_jepa", "training.policy_ema=0.9", r"training\.policy_ema: .* a moving average of its own"),
    ("temporal_jepa", "training.phase1.inverse_dynamics_horizon=4", r"takes training\.phase1\.inverse_dynamics_weight "
                                                                     "above 0; leave it out"),
    ("temporal_jepa", "model.vision_model=tower", r"which takes model\.vision=siglip or dinov2; leave it out"),
    ("flow_matching", "training.phase2.world_weight=1", r"which takes training\.phase2\.world_target=state or"),
    ("film", "film.world_shuffled=true", r"film\.world_shuffled: not seen by film .*, which takes film\.world_target="),
    ("film", "film.encoder=stamo", r"film\.encoder: not seen by film"),
    ("film", "data.latents=false", r"data\.latents: not seen by film"),
    ("film", "data.shuffle_buffer=8", r"which takes data\.stream=sequential; leave"),
    ("vla", "vla.bins=8", r"vla\.bins: .*, which takes vla\.head=discrete; leave"),
    ("vla", "vla.queries=8", r"vla\.queries: .*, which takes vla\.fusion=perceiver; leave"),
    ("stamo", "stamo.vae_steps=8", r"stamo\.vae_steps: .*, which takes stamo\.decoder=vae; leave"),
    ("stamo", "stamo.motion_steps=8", r"stamo\.motion_steps: .*, which takes stamo\.motion_weight above 0; leave"),
])  # fmt: skip
def test_a_key_that_changes_nothing(system: str, key: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        say(system, key)


def test_keys_that_are_seen() -> None:
    for row in SYSTEMS:
        say(row.name, "training.batch_size=8", "model.action_seq_len=4", "training.learning_rate=1e-3", "data.lanes=2")
        say(row.name, f"{row.section}.learning_rate=1e-3", recipe="systems")
    say("temporal_jepa", "training.phase2.world_weight=1", "model.policy_layers=1")  # both phases by one command's keys
    say("film", "film.world_target=state", "stamo.width=64", "model.mamba_backend=loop")
    tower = ("model.vision=siglip", "model.vision_model=tower", "model.vision_width=24")
    say("stamo", "stamo.features=siglip", *tower, "training.policy_ema=0.9")
    for name, eyes in (("film", "conv"), ("act", "conv or resnet18"), ("vla", "conv"), ("goal", "conv")):
        say(name, f"{name}.vision=siglip", *tower)
        with pytest.raises(
            UsageError, match=rf"{name}\.image_size: .*, which takes {name}\.vision={eyes}; leave it out"
        ):
            say(name, f"{name}.vision=siglip", *tower, f"{name}.image_size=64")
    say("goal", "goal.fusion=state", "goal.encoder=stamo", "data.latents=false")
    say("vla", "vla.head=discrete", "vla.bins=8", "vla.world_target=latent", "vla.world_code=3")
    with pytest.raises(UsageError, match=r"vla\.world_code: .*, which takes vla\.world_target=latent; leave it out"):
        say("vla", "vla.world_target=motion", "vla.world_code=3")


def test_a_file_of_another_system_and_a_recorded_run(tmp_path: Path) -> None:
    other = tmp_path / "act.yaml"
    other.write_text("act: {kl_weight: 2.0}\nmodel: {image_size: 64}\n")
    with pytest.raises(UsageError, match=r"^act\.kl_weight: not seen by film"):
        say("film", file=other)
    store, run = micro_store(tmp_path / "store"), tmp_path / "run"
    small = ("training.max_steps=1", "training.batch_size=8", "data.lanes=4", "film.image_size=32")
    said = TrainFlags(system="film", preset="tiny", store=str(store), run=run, overrides=small)
    run_training(said, QUIET)
    recorded = json.loads((run / "config_film.json").read_text())
    assert "model.image_size" in flatten(recorded)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(recorded))
    resumed = TrainFlags(resume=run, config=again, overrides=("training.max_steps=2",))
    assert run_training(resumed, QUIET).steps == 2
    with pytest.raises(UsageError, match=r"euler_steps: 3, but .* is of film, which samples nothing"):
        Policy.load(run / "checkpoints/film/checkpoint_latest", euler_steps=3)
    with pytest.raises(UsageError, match=r"act\.kl_weight: not seen by film"):
        run_training(TrainFlags(resume=run, overrides=("act.kl_weight=2",)), QUIET)
