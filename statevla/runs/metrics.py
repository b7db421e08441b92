"""Loss curves of a run as one picture, from its JSONL metrics."""

import io
import json
from pathlib import Path
from typing import Any

from stores.disk.durable import write_bytes
from stores.errors import StoreCorrupt

IGNORED = ("step", "epoch", "kind", "lr", "samples_per_s", "seconds", "data_wait")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics file, in order; empty when there is none.

    What follows the last newline was torn by a crash, or is being written, and counts as not there: `LineLog` drops it
    when the run goes on. Raises StoreCorrupt for a whole line that is no JSON object with kind and step.
    """
    if not path.is_file():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]
    return [_record(line, f"{path}: line {number}") for number, line in enumerate(whole, 1)]


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise StoreCorrupt(f"{where}: not JSON: {error}; remove this line") from error
    if not isinstance(found, dict):
        raise StoreCorrupt(f"{where}: expected an object, got {type(found).__name__}; remove this line")
    if not {"kind", "step"} <= found.keys():
        raise StoreCorrupt(f"{where}: expected kind and step, got {', '.join(map(str, found))}; remove this line")
    if not isinstance(found["step"], int):
        raise StoreCorrupt(f"{where}: step: expected a whole number, got {found['step']!r}; remove this line")
    return found


def plot_losses(metrics: Path, picture: Path, title: str) -> None:
    """Draw every quantity of `metrics` over optimizer steps, training as a line, validation as points.

    Without matplotlib (extra ``report``) there is no picture; the numbers are in `metrics`.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return

    records = [record for record in read_metrics(metrics) if record["kind"] in ("train", "val")]
    names = [name for name in dict.fromkeys(key for record in records for key in record) if name not in IGNORED]
    if not names:
        return
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        for kind, style in (("train", "-"), ("val", ".")):
            points = [(r["step"], r[name]) for r in records if r["kind"] == kind and name in r]
            if points:
                axis.plot(*zip(*points, strict=True), style, linewidth=1, markersize=4, label=kind)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("optimizer step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_bytes(picture, buffer.getvalue())
