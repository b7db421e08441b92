"""What docs/results-libero-earlier.md shows of `statevla/recipes/libero_object.sh`: tables, curve, small films.

    .venv/bin/python docs/results_libero.py runs/libero-object docs/images

Prints Markdown; writes ``libero-success.png``, and for each film of the last checkpoint a GIF of a tenth of the size.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from statevla.reports.tables import markdown_table, percent
from statevla.runs.state import read_state
from statevla.sims.libero import suites
from stores.disk.durable import write_bytes

STRIDE: Final = 3
"""Every third frame of a film is kept."""
COLOURS: Final = 48
ROBOT_JOINTS, FREE_POSITIONS, FREE_VELOCITIES = 9, 7, 6


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Every evaluation's results.json with the ``step`` of its checkpoint and its ``folder``, by step."""
    found = []
    for file in sorted((folder / "eval").glob("checkpoint_*/results.json")):
        results = json.loads(file.read_text())
        results["step"], results["folder"] = read_state(Path(results["policy"])).step, file.parent
        found.append(results)
    return sorted(found, key=lambda results: int(results["step"]))


def interval_text(interval: list[float]) -> str:
    """``[0.4, 0.89]`` -> ``40 % to 89 %``."""
    return " to ".join(percent(bound) for bound in interval)


def spread(task_index: int) -> list[int]:
    """How far each movable thing's place varies over a task's initial states: larger side, mm, sorted.

    A state is time, positions, velocities; positions are 7 joints and 2 fingers, then 7 numbers for each free object.
    """
    states = suites.init_states(suites.select("libero_object", [task_index])[0])
    objects = (states.shape[1] - 1 - 2 * ROBOT_JOINTS) // (FREE_POSITIONS + FREE_VELOCITIES)
    first = 1 + ROBOT_JOINTS
    places = states[:, first : first + FREE_POSITIONS * objects].reshape(len(states), objects, FREE_POSITIONS)[..., :2]
    return sorted(round(1000 * float(side)) for side in (places.max(0) - places.min(0)).max(1))


def curve(rows: list[dict[str, Any]]) -> bytes:
    """Success over optimizer steps of phase 2, Wilson intervals, as PNG."""
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    steps = [row["step"] for row in rows]
    rates = [row["success"] for row in rows]
    below = [row["success"] - row["interval"][0] for row in rows]
    above = [row["interval"][1] - row["success"] for row in rows]
    axis.errorbar(steps, rates, yerr=(below, above), fmt="o-", capsize=3, color="#1f7a5c")
    axis.set(ylim=(0, 1), xlabel="optimizer steps of phase 2", ylabel="success")
    axis.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def small_film(film: Path) -> bytes:
    """Half the width and height, every third frame, few colours."""
    with Image.open(film) as source:
        frames, milliseconds = [], source.info["duration"] * STRIDE
        for number in [*range(0, source.n_frames - 1, STRIDE), source.n_frames - 1]:
            source.seek(number)
            half = source.convert("RGB").resize((source.width // 2, source.height // 2), Image.Resampling.LANCZOS)
            frames.append(half.quantize(COLOURS, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(frames) - 1) + [1500]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables, curve and films of a LIBERO run.")
    parser.add_argument("folder", type=Path, help="what statevla/recipes/libero_object.sh wrote")
    parser.add_argument("images", type=Path, help="where pictures go")
    arguments = parser.parse_args()
    rows = read_results(arguments.folder)
    if not rows:
        raise SystemExit(
            f"{arguments.folder}: no eval/checkpoint_*/results.json; run statevla/recipes/libero_object.sh first"
        )
    last = rows[-1]
    numbers = {record["task"]: int(record["task_index"]) for record in last["records"]}
    print(
        markdown_table(
            ("optimizer steps of phase 2", "success", "95 % interval", "successes / trials", "errors"),
            [
                [f"{r['step']:,}", percent(r["success"]), interval_text(r["interval"]),
                 f"{r['successes']} / {r['trials']}", str(r["errors"])]
                for r in rows
            ],
        )
    )  # fmt: skip
    print(
        markdown_table(
            ("task", "success", "95 % interval", "successes / trials", "errors", "things' places vary within, mm"),
            [
                [last["instructions"][task], percent(r["success"]), interval_text(r["interval"]),
                 f"{r['successes']} / {r['trials']}", str(r["errors"]), " ".join(map(str, spread(numbers[task])))]
                for task, r in last["per_task"].items()
            ],
        )
    )  # fmt: skip
    write_bytes(arguments.images / "libero-success.png", curve(rows))
    for film in sorted((last["folder"] / "videos").glob("*.gif")):
        write_bytes(arguments.images / f"libero-{film.name}", small_film(film))


if __name__ == "__main__":
    main()
