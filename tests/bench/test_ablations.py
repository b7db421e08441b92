"""The rows of the ablation are configurations that exist, each trained by commands that parse."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from statevla.bench.ablations import (
    FLOW,
    JEPA,
    ROWS,
    Plan,
    chosen_rows,
    encoder_name,
    main,
    markdown,
    run_row,
    still_to_do,
)
from statevla.recipes import load_recipe
from statevla.systems.table import sections

OLD = Path(__file__).parents[1] / "fixtures/checkpoint_format1"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_configuration(row: object) -> None:
    keys = {**row.encoder, **row.policy}  # type: ignore[attr-defined]
    for system in (JEPA, FLOW):
        request = load_recipe("tabletop").request(system)
        request.changes.update(keys)
        config = request.config(sections())
        assert config.training.phase1.inverse_dynamics_horizon <= config.model.action_seq_len


def test_a_row_regularizes_what_its_name_says_by_any_recipe() -> None:
    for row in ROWS:
        for recipe in ("tabletop", "libero"):
            request = load_recipe(recipe).request(JEPA)
            request.changes.update(row.encoder)
            name = encoder_name(row)
            wanted = "both" if "on both" in name else "z" if "on z" in name else "z_next"
            assert request.config(sections()).training.phase1.regularize == wanted


def test_names_are_told_apart_and_policies_share_their_encoder() -> None:
    plan = Plan(Path("s"), Path("o"), "tabletop", (0,), 10, 5, 4, ())
    assert len({plan.policy_run(row, 0) for row in ROWS}) == len(ROWS)
    assert len({plan.encoder_run(row, 0) for row in ROWS}) == len(ROWS) // 2
    assert len({plan.encoder_run(ROWS[0], seed) for seed in (0, 1)}) == 2


def test_rows_are_chosen_by_name_or_by_a_part_of_it() -> None:
    def names(*parts: str) -> set[str]:
        return {row.name for row in chosen_rows(parts)}

    assert names("JEPA + chunk inverse") == {"JEPA + chunk inverse", "JEPA + chunk inverse, policy on z+tokens"}
    assert len(names("JEPA + chunk")) == 4
    assert len(names("JEPA + chunk inverse", "random")) == 4
    assert len(names("")) == len(ROWS)


def test_a_dry_run_prints_every_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        main(["--store", "s", "--out", str(tmp_path), "--dry-run", "--seeds", "0,1", "--rows", "chunk inverse alone"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 2 * 4
    assert sum("--system temporal_jepa" in line for line in lines) == 4
    assert "training.phase1.prediction_weight=0" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_policies_of_a_libero_suite_act_there(tmp_path: Path) -> None:
    plan = Plan(
        Path("s"), tmp_path, "libero", (0,), 10, 5, 4, (), try_in=("libero_object", "0-2"), first_init=20, replan=5
    )
    done, act = plan.commands(ROWS[0], 0)[-1]
    assert " ".join(act[: act.index("--checkpoint")]) == (
        "eval libero --suite libero_object --tasks 0-2 --num-trials 4 --first-init 20 --replan 5"
    )
    assert act[-1] == str(done.parent) != str(plan.policy_run(ROWS[0], 0) / "tabletop")
    done.parent.mkdir(parents=True)
    done.write_text('{"success": 0.7}')
    assert plan.cells(ROWS[0], 0)[-1] == 0.7


def test_what_was_not_run_says_so(tmp_path: Path) -> None:
    plan = Plan(Path("s"), tmp_path, "tabletop", (0,), 10, 0, 4, (), Path("raw"))
    assert plan.commands(ROWS[0], 0)[1][1][-2:] == ["--source", "raw"]
    assert [len(plan.commands(row, 0)) for row in ROWS[:1]] == [2]
    row = ROWS[0]
    assert set(plan.cells(row, 0)[2:]) == {None}
    folder = plan.encoder_run(row, 0) / "probes"
    folder.mkdir(parents=True)
    value = {"r2": 0.5, "within": 0.1, "width": 2}
    probes = dict.fromkeys(("robot_state", "action", "progress"), value)
    rollouts = [{"steps": 1, "predicted": 0.1, "shuffled": 0.3, "copied": 0.2, "frames": 8}]
    (folder / "probes.json").write_text(
        json.dumps({"z_std": 0.9, "z_rank": 12.0, "probes": probes, "instruction": 0.8, "rollouts": rollouts})
    )
    cells = plan.cells(row, 0)
    assert cells[2:] == (0.9, 12.0, 0.5, pytest.approx(3.0), 0.5, 0.5, 0.5, None, None, 0.8, None)
    assert markdown([cells]).splitlines()[2].endswith("| 0.8 | not run |")


def test_a_stopped_training_goes_on_and_a_finished_one_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint_latest"
    command = ["train", "--system", "temporal_jepa"]
    assert still_to_do(folder / "state.json", command) == command
    shutil.copytree(OLD / "phase1_temporal_jepa", folder)
    assert still_to_do(folder / "state.json", command) is None
    tree = json.loads((folder / "state.json").read_text())
    tree["scheduler"]["total_steps"] = tree["step"] + 1
    (folder / "state.json").write_text(json.dumps(tree))
    assert still_to_do(folder / "state.json", command) == ["train", "--resume", str(folder)]
    (tmp_path / "probes.json").write_text("{}")
    assert still_to_do(tmp_path / "probes.json", command) is None


def test_what_comes_after_a_command_that_failed_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes of an encoder whose training was stopped would stand as those of the trained one for ever."""
    asked: list[str] = []
    answer = {"train": 143, "eval": 0}

    def run(command: list[str], check: bool) -> SimpleNamespace:
        asked.append(command[3])
        if not answer[command[3]]:
            (tmp_path / f"{command[3]}.json").write_text("{}")
        return SimpleNamespace(returncode=answer[command[3]])

    monkeypatch.setattr("statevla.bench.ablations.subprocess.run", run)
    row = [(tmp_path / f"{name}.json", [name]) for name in answer]
    assert not run_row(row)
    assert asked == ["train"]
    answer["train"] = 0
    assert run_row(row)
    assert asked == ["train", "train", "eval"]
    assert run_row(row)
    assert len(asked) == 3
