"""The recipes of systems run the commands that they should, in order, and go on where they stopped."""

import os
import subprocess
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "statevla/recipes"
STUB = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
[[ "$*" == *"${FAIL:-nothing}"* ]] && exit 3
out=""; run=""; system=""; previous=""
for word in "$@"; do
  case $previous in --out) out=$word;; --run) run=$word;; --system) system=$word;; esac
  previous=$word
done
if [[ $1 == train && -n $run ]]; then mkdir -p "$run/checkpoints/$system/checkpoint_latest"; fi
if [[ $1 == eval ]]; then mkdir -p "$out"; echo "{}" > "$out/results.json"; fi
exit 0
"""


def run(tmp_path: Path, recipe: str = "systems.sh", **told: str) -> tuple[int, list[list[str]], str]:
    """Exit status, commands and stderr."""
    stub, log = tmp_path / "stub", tmp_path / "log"
    stub.write_text(STUB)
    stub.chmod(0o755)
    log.write_text("")
    (tmp_path / "out").mkdir(exist_ok=True)
    environment = {**os.environ, **told, "STATEVLA": str(stub), "LOG": str(log)}
    done = subprocess.run(
        ["bash", str(RECIPES / recipe), str(tmp_path / "out")], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, [line.split() for line in log.read_text().splitlines()], done.stderr


def starts(commands: list[list[str]], words: int = 2) -> list[str]:
    return [" ".join(command[:words]) for command in commands]


def test_every_policy_is_trained_tried_and_compared_once(tmp_path: Path) -> None:
    status, commands, said = run(tmp_path, SYSTEMS="film goal flow_matching", SEEDS="0 1", CONTROLS="film", STEPS="7")
    assert status == 0, said
    one = [
        "train --system film", "eval tabletop --episodes", "train --system goal", "eval tabletop --episodes",
        "eval tabletop --episodes", "train --system temporal_jepa", "train --system flow_matching",
        "eval tabletop --episodes",
    ]  # fmt: skip
    control = ["train --system film", "eval tabletop --episodes"]
    assert starts(commands[3:-1], 3) == [*one, *control, *one]
    assert starts(commands[:3]) == ["collect tabletop", "ingest tabletop", "stats --store"]
    assert starts(commands[-1:], 1) == ["compare"]
    trained = [" ".join(command) for command in commands if command[0] == "train"]
    assert all("training.max_steps=7" in command for command in trained)
    assert [command for command in trained if "shuffle_instructions=true" in command] == [trained[4]]
    goals = [command[command.index("--goals") + 1] for command in commands if "--goals" in command]
    assert goals == ["language", "image"] * 2


def test_the_same_on_libero(tmp_path: Path) -> None:
    status, commands, said = run(
        tmp_path, SUITE="libero_object", SYSTEMS="act", SEEDS="0", CONTROLS="", TASKS="1,3", EPISODES="5", TRIALS="4"
    )
    assert status == 0, said
    collect, ingest, _, _, tried, _ = (" ".join(command) for command in commands)
    assert collect.startswith("collect libero_object --tasks 1,3 --episodes 5 --init-states 30 --image-size 64")
    assert ingest.startswith("ingest libero_object")
    assert tried.startswith("eval libero --suite libero_object --tasks 1,3 --num-trials 4 --first-init 30 --checkpoint")
    assert tried.endswith("act-0/eval/libero_object")


def test_noise_and_execution_on_another_suite(tmp_path: Path) -> None:
    status, commands, said = run(
        tmp_path, SUITE="libero_goal", SYSTEMS="film", SEEDS="0", CONTROLS="", NOISE="0.2", REPLAN="5"
    )
    assert status == 0, said
    collect, ingest, _, _, tried, _ = (" ".join(command) for command in commands)
    assert "collect libero_goal --tasks 0-2 --episodes 20" in collect
    assert "--noise 0.2 --noise-share 0.5" in collect
    assert ingest.startswith("ingest libero_goal")
    assert "--suite libero_goal --tasks 0-2 --num-trials 20 --first-init 30 --replan 5 --checkpoint" in tried


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    told = {"SYSTEMS": "film act", "SEEDS": "0", "CONTROLS": ""}
    status, commands, _ = run(tmp_path, FAIL="eval tabletop", **told)
    assert status != 0
    assert starts(commands[-1:]) == ["eval tabletop"]
    status, commands, _ = run(tmp_path, **told)
    assert status == 0
    assert starts(commands[:-1]) == ["train --resume", "eval tabletop", "train --system", "eval tabletop"]
    _, commands, _ = run(tmp_path, **told)
    assert starts(commands, 1) == ["compare"]


def test_another_suite_is_refused(tmp_path: Path) -> None:
    status, commands, said = run(tmp_path, SUITE="libero_90")
    assert (status, commands) == (2, [])
    assert "SUITE=libero_90: expected tabletop, libero_object, libero_goal," in said


def test_five_arms_of_few_labels(tmp_path: Path) -> None:
    told = {"recipe": "few_labels.sh", "SEEDS": "0 1", "SYSTEM": "act", "STEPS": "7", "SHARE": "0.1"}
    status, commands, said = run(tmp_path, **told)
    assert (status, commands) == (2, [])
    assert "out has no finished store; statevla/recipes/systems.sh" in said
    (tmp_path / "out/.ready").touch()
    status, commands, said = run(tmp_path, FAIL="eval tabletop", **told)
    assert status != 0
    status, again, said = run(tmp_path, **told)
    assert status == 0, said
    assert starts(commands[:2], 3) == ["train --system temporal_jepa", "train --system act"]
    assert starts(again[:2]) == ["train --resume", "eval tabletop"]
    encoder, labels, motion, every, shuffled, latent = (
        " ".join(command) for command in [*commands[:2], *(each for each in again[1:10] if each[0] == "train")]
    )
    assert "data.labelled_share=0.1" in encoder
    assert "training.max_steps=2500" in encoder
    for arm, few, target, control in (
        (labels, True, "", False), (motion, True, "motion", False), (every, False, "", False),
        (shuffled, True, "motion", True), (latent, True, "latent", False),
    ):  # fmt: skip
        moving = bool(target)
        assert ("data.labelled_share=0.1" in arm) == few
        assert ("data.unlabelled=keep" in arm) == moving
        assert ("few-labels/encoder-temporal_jepa-0 --set act.encoder=temporal_jepa" in arm) == moving
        assert ("data.labelled_times=2 " in arm) == moving, "0.2 labelled rows for 0.9 others: nearest to 1 in 5"
        assert (f"act.world_target={target} --set act.world_weight=1" in arm) == moving
        assert arm.count("world_target") == moving
        assert ("act.world_shuffled=true" in arm) == control
        assert "training.max_steps=7" in arm
    of_seed = [command for command in again if "training.seed=1" in command]
    assert starts(of_seed[:2], 3) == ["train --system temporal_jepa", "train --system act"]
    second = list(map(" ".join, of_seed))
    assert "data.labelled_share=0.1" in second[0], "which episodes are labelled is the seed's matter"
    assert [f"encoder-temporal_jepa-{seed} " in arm for arm in second[1:] for seed in (0, 1)] == [
        seen for target in (False, True, False, True, True) for seen in (False, target)
    ]
    assert len(again[-1]) == len(("compare", *range(10), "--out", "folder"))
    _, last, _ = run(tmp_path, **told)
    assert starts(last, 1) == ["compare"]


def test_another_target_has_runs_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.ready").touch()
    told = {"recipe": "few_labels.sh", "SEEDS": "0"}
    run(tmp_path, **told)
    status, commands, said = run(tmp_path, TARGET="motions", **told)
    assert status == 0, said
    motions, shuffled = (" ".join(command) for command in commands if command[0] == "train")  # the others are done
    assert all("film.world_target=motions --set film.world_weight=1" in arm for arm in (motions, shuffled))
    assert "world_shuffled" not in motions
    assert "film.world_shuffled=true" in shuffled
    assert [Path(name).parent.name for name in commands[-1][1:6]] == [
        "labels-0", "motions-temporal_jepa-0", "all-0", "motions-shuffled-temporal_jepa-0", "latent-temporal_jepa-0",
    ]  # fmt: skip


def test_motion_of_stamos_states_is_learned_from_every_picture(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.ready").touch()
    told = {"recipe": "few_labels.sh", "SHARE": "0.03", "ENCODER": "stamo", "ENCODER_STEPS": "9"}
    status, commands, said = run(tmp_path, SEEDS="0 1", **told)
    assert status == 0, said
    assert [command[2] for command in commands if command[0] == "train"].count("stamo") == 1, "one for all seeds"
    commands = commands[: 1 + 2 * 5]
    encoder, labels, motion, every, shuffled, latent = (
        " ".join(command) for command in commands if command[0] == "train"
    )
    assert encoder.startswith("train --system stamo")
    assert "training.max_steps=9" in encoder
    assert "labelled_share" not in encoder
    for arm in (motion, shuffled, latent):
        assert "few-labels/encoder-stamo --set film.encoder=stamo" in arm
        assert "data.labelled_times=8 " in arm, "0.24 labelled rows for 0.97 others"
    assert "stamo" not in " ".join((labels, every)).replace(str(tmp_path), "")
