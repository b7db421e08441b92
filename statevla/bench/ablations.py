"""Does the JEPA learn what a policy needs? `python -m statevla.bench.ablations --store STORE --out FOLDER`.

Every row is an encoder with a policy on it, trained alike for each seed by the commands of this toolkit, then probed
and let act. What is done already is not done again, so that the same command goes on after an interruption; the table
is written after every row. ``--dry-run`` prints the commands.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from statevla.runs import layout
from statevla.runs.state import read_state
from statevla.systems.table import find_system
from stores.disk.durable import make_dir, write_bytes, write_json

JEPA, FLOW = "temporal_jepa", "flow_matching"
INVERSE: Final = "training.phase1.inverse_dynamics_weight"
HORIZON: Final = "training.phase1.inverse_dynamics_horizon"
ALONE: Final = {f"training.phase1.{name}_weight": 0 for name in ("prediction", "variance", "covariance")}
CHUNK: Final = {INVERSE: 10, HORIZON: 10}
ON_PREDICTIONS: Final = {"training.phase1.regularize": "z_next"}
ON_Z: Final = {"training.phase1.regularize": "z"}
GAP: Final = {"training.phase1.gap": 4}
SIGREG: Final = {
    "training.phase1.sigreg_weight": 0.05, "training.phase1.variance_weight": 0, "training.phase1.covariance_weight": 0
}  # fmt: skip
TOKENS: Final = {"model.policy_context": "z+tokens"}
ON_TOKENS: Final = ", policy on z+tokens"


@dataclass(frozen=True)
class Row:
    """encoder, policy: keys that differ from the recipe. random: the encoder is left as it starts."""

    name: str
    encoder: Mapping[str, Any]
    policy: Mapping[str, Any]
    random: bool = False


def with_policies(name: str, encoder: Mapping[str, Any], random: bool = False) -> list[Row]:
    """One encoder, a policy on its state and one on its tokens too. What a row regularizes is no recipe's matter."""
    encoder = {**ON_PREDICTIONS, **encoder}
    return [Row(name, encoder, {}, random), Row(name + ON_TOKENS, encoder, TOKENS, random)]


NO_INVERSE: Final = {INVERSE: 0}
ROWS: Final = (
    *with_policies("JEPA alone (variance on predictions)", NO_INVERSE),
    *with_policies("JEPA alone, variance on z", NO_INVERSE | ON_Z),
    *with_policies("JEPA alone, variance on both", NO_INVERSE | {"training.phase1.regularize": "both"}),
    *with_policies("JEPA alone, variance on z, gap of 4", NO_INVERSE | ON_Z | GAP),
    *with_policies("JEPA alone, SIGReg on z", NO_INVERSE | ON_Z | SIGREG),
    *with_policies("JEPA + multi-step inverse, variance on z, gap of 4", ON_Z | GAP | {INVERSE: 10, HORIZON: 4}),
    *with_policies("JEPA + one-step inverse", {INVERSE: 10, HORIZON: 1}),
    *with_policies("JEPA + chunk inverse", CHUNK),
    *with_policies("JEPA + chunk inverse, variance on z", CHUNK | ON_Z),
    *with_policies("chunk inverse alone", CHUNK | ALONE),
    *with_policies("random encoder, frozen", NO_INVERSE, random=True),
)
COLUMNS: Final = (
    "row", "seed", "z_std", "z_rank", "copy ratio", "action ratio", "R² robot", "R² action", "R² progress",
    "R² object", "R² goal", "instruction", "success",
)  # fmt: skip
READ: Final = ("robot_state", "action", "progress", "object", "goal")
"""Probes of `COLUMNS`."""


@dataclass(frozen=True)
class Plan:
    """store, out: folders; source: of the store's recordings, for the probes of things' places. steps, policy_steps,
    trials: of every row; 0 policy steps: encoders and probes alone. try_in: a LIBERO suite with its task numbers
    (``"0-2"``), trials then are a task's, from initial state `first_init` on; None: tabletop. replan: actions executed
    of each chunk, None: the suite's default.
    """

    store: Path
    out: Path
    recipe: str
    seeds: Sequence[int]
    steps: int
    policy_steps: int
    trials: int
    settings: Sequence[str]
    source: Path | None = None
    try_in: tuple[str, str] | None = None
    first_init: int = 30
    replan: int | None = None

    def encoder_run(self, row: Row, seed: int) -> Path:
        """Rows with the same encoder share it."""
        return self.out / f"{_slug(encoder_name(row))}-{seed}"

    def policy_run(self, row: Row, seed: int) -> Path:
        """The row's own."""
        return self.out / f"{_slug(row.name)}-{seed}-policy"

    def commands(self, row: Row, seed: int) -> list[tuple[Path, list[str]]]:
        """(the file that is there when it is done, command line) in order."""
        encoder, policy = self.encoder_run(row, seed), self.policy_run(row, seed)
        common = [f"training.seed={seed}", *self.settings]
        steps = 1 if row.random else self.steps
        keys = [f"{key}={value}" for key, value in row.encoder.items()]
        trained = layout.checkpoints(encoder, find_system(JEPA).folder) / layout.LATEST
        acting = layout.checkpoints(policy, find_system(FLOW).folder) / layout.LATEST
        extra = ["training.phase1.learning_rate=1e-12", "training.warmup_steps=0"] if row.random else []
        train = self._train(JEPA, encoder, [*common, *keys, *extra, f"training.max_steps={steps}"])
        probes = ["eval", "probes", "--checkpoint", str(trained), "--store", str(self.store), "--device", "cpu"]
        probes += ["--out", str(encoder / "probes")] + ([] if self.source is None else ["--source", str(self.source)])
        commands = [
            (trained / layout.STATE, train),
            (encoder / "probes/probes.json", probes),
        ]
        if self.policy_steps:
            chosen = [f"{key}={value}" for key, value in row.policy.items()]
            chosen = [*common, *keys, *chosen, f"training.max_steps={self.policy_steps}"]
            commands.append((acting / layout.STATE, [*self._train(FLOW, policy, chosen), "--encoder", str(trained)]))
            out = policy / self.suite
            act = [*self._act(), "--checkpoint", str(acting), "--videos", "0", "--out", str(out)]
            commands.append((out / "results.json", act))
        return commands

    @property
    def suite(self) -> str:
        """Where the policies act."""
        return "tabletop" if self.try_in is None else self.try_in[0]

    def _act(self) -> list[str]:
        replan = [] if self.replan is None else ["--replan", str(self.replan)]
        if self.try_in is None:
            return ["eval", "tabletop", "--episodes", str(self.trials), *replan]
        suite, tasks = self.try_in
        trials = ["--num-trials", str(self.trials), "--first-init", str(self.first_init)]
        return ["eval", "libero", "--suite", suite, "--tasks", tasks, *trials, *replan]

    def _train(self, system: str, run: Path, settings: Sequence[str]) -> list[str]:
        sets = [part for setting in settings for part in ("--set", setting)]
        command = ["train", "--system", system, "--recipe", self.recipe, "--store", str(self.store), "--run", str(run)]
        return [*command, *sets]

    def cells(self, row: Row, seed: int) -> tuple[Any, ...]:
        """The row's numbers, None where something was not run."""
        probes = _read(self.encoder_run(row, seed) / "probes/probes.json")
        success = _read(self.policy_run(row, seed) / self.suite / "results.json").get("success")
        first = next(iter(probes.get("rollouts", ())), None)
        found = [probes.get("probes", {}).get(name, {}).get("r2") for name in READ]
        ratios = (None, None) if first is None else (
            first["predicted"] / max(first["copied"], 1e-12), first["shuffled"] / max(first["predicted"], 1e-12)
        )  # fmt: skip
        return (row.name, seed, probes.get("z_std"), probes.get("z_rank"), *ratios, *found, probes.get("instruction"),
                success)  # fmt: skip


def chosen_rows(parts: Sequence[str]) -> list[Row]:
    """Rows with one of these names, whatever their policies see, or, where it is no name, with that text in theirs."""
    names = {encoder_name(row) for row in ROWS}
    return [row for row in ROWS if any(encoder_name(row) == p if p in names else p in row.name for p in parts)]


def encoder_name(row: Row) -> str:
    return row.name.removesuffix(ON_TOKENS)


def still_to_do(done: Path, command: list[str]) -> list[str] | None:
    """`command`, the one that goes on with a training that was stopped, or None where all is done."""
    if not done.is_file():
        return command
    if done.name != layout.STATE or read_state(done.parent).finished:
        return None
    return ["train", "--resume", str(done.parent)]


def run_row(commands: Sequence[tuple[Path, list[str]]]) -> bool:
    """What is still to do of a row, up to the first command that fails: the ones after it would measure something else,
    and stand as done. Whether all succeeded; a training that a signal stops does not.
    """
    for done, command in commands:
        left = still_to_do(done, command)
        if left is not None and subprocess.run([sys.executable, "-m", "statevla", *left], check=False).returncode:
            return False
    return True


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """The table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    return "not run" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and write ``ablations.json`` and ``ablations.md``; 1 when a command failed."""
    parser = argparse.ArgumentParser(prog="python -m statevla.bench.ablations", description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="the store's HDF5 folder, to probe where things are")
    parser.add_argument("--recipe", default="tabletop")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--policy-steps", type=int, default=2500)
    parser.add_argument("--trials", type=int, default=100, help="of each policy; with --suite of each task")
    parser.add_argument("--suite", help="a LIBERO suite to act in (default: tabletop)")
    parser.add_argument("--tasks", default="0-2", help="of --suite")
    parser.add_argument("--first-init", type=int, default=30, help="first initial state of --suite's trials")
    parser.add_argument(
        "--rows", default="", help="only rows of these names or with such a text in theirs, by semicolon"
    )
    parser.add_argument("--context", default="all", choices=("all", "z", "z+tokens"), help="what the policies see")
    parser.add_argument("--replan", type=int, help="actions executed of each chunk (default: the suite's)")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="KEY=VALUE for every training")
    parser.add_argument("--dry-run", action="store_true")
    told = parser.parse_args(arguments)
    seeds = tuple(int(seed) for seed in told.seeds.split(","))
    try_in = None if told.suite is None else (told.suite, told.tasks)
    plan = Plan(
        told.store, told.out, told.recipe, seeds, told.steps, told.policy_steps, told.trials, told.settings,
        told.source, try_in, told.first_init, told.replan,
    )  # fmt: skip
    rows = chosen_rows(told.rows.split(";"))
    rows = [row for row in rows if told.context in ("all", row.policy.get("model.policy_context", "z"))]
    failed = False
    for seed in seeds:
        for row in rows:
            if told.dry_run:
                for _, command in plan.commands(row, seed):
                    print("statevla", *command)
            elif not run_row(plan.commands(row, seed)):
                failed = True
        if not told.dry_run:
            cells = [plan.cells(each, seed) for each in rows for seed in seeds]
            make_dir(told.out)
            write_json(told.out / "ablations.json", {"columns": COLUMNS, "rows": cells})
            write_bytes(told.out / "ablations.md", markdown(cells).encode())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
