"""One page of training runs side by side: losses, monitors, warnings, probes, states; self-contained, or live."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from statevla.reports.charts import LARGEST, Dot, Series, colour_of, line_chart, scatter
from statevla.reports.render import markup, render
from statevla.runs import layout
from statevla.runs.listing import RunRow, rows_of
from statevla.runs.metrics import IGNORED, read_metrics
from statevla.runs.names import apart
from stores.disk import durable
from stores.disk.trouble import describe as describe_trouble
from stores.errors import StateVLAError, StoreCorrupt, UsageError

LONGEST: Final = 400
"""Points that a line is thinned to."""
REFRESH: Final = 5
"""Seconds between the loads of a live page."""
PROBES: Final = "probes.json"
PROBED: Final = (
    "checkpoint", "step", "probes", "instruction", "chance", "z_std", "z_rank", "z_within", "rollouts", "shares",
    "dots",
)  # fmt: skip
"""What the page takes of it."""
SECTIONS: Final = ("Training", "Validation")


@dataclass(frozen=True)
class Told:
    """One system of one run, as it stands on the disk now."""

    name: str
    row: RunRow
    records: tuple[dict[str, Any], ...]
    config: dict[str, Any]
    probes: tuple[dict[str, Any], ...]


def read_runs(runs: Sequence[Path]) -> list[Told]:
    """Everything that the page shows. Raises UsageError for a folder without a run and for one that is named twice,
    StoreCorrupt for a file that cannot be read.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError(f"report: one run is named twice: {', '.join(map(str, runs))}")
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = apart(runs)
    found = []
    for run, name in zip(runs, names, strict=True):
        folders = sorted((run / layout.CHECKPOINTS).glob("*")) if (run / layout.CHECKPOINTS).is_dir() else []
        rows = {folder.name: row for folder in folders for row in rows_of(run) if folder.name.endswith(row.system)}
        if not rows:
            raise UsageError(f"{run}: no run here that has begun to train; see `statevla runs`")
        again = "remove it, and run `statevla eval probes` again"
        probes = [_object(path, PROBED, again) for path in sorted(run.glob(f"eval/*/{PROBES}"))]
        for folder, row in rows.items():
            config = layout.configuration(run, folder)
            found.append(
                Told(
                    f"{name} {row.system}" if len(rows) > 1 or len(runs) == 1 else name,
                    row,
                    tuple(read_metrics(layout.metrics(run, folder))),
                    _object(config, (), "remove it: checkpoints hold it too") if config.is_file() else {},
                    tuple(each for each in probes if f"/{folder}/" in each["checkpoint"]),
                )
            )  # fmt: skip
    return found


def _object(file: Path, needed: Sequence[str], otherwise: str) -> dict[str, Any]:
    """What a file holds. needed: keys that it must have. otherwise: what is to be done where it is damaged."""
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise StoreCorrupt(f"{file}: not JSON ({error}); {otherwise}") from error
    missing = [key for key in needed if key not in found] if isinstance(found, dict) else ["an object"]
    if missing:
        raise StoreCorrupt(f"{file}: expected {', '.join(missing)}, which is not there; {otherwise}")
    return dict(found)


def runs_page(told: Sequence[Told], refresh: int | None = None) -> str:
    """The HTML text. refresh: seconds after which a browser loads it again."""
    return render(
        "runs.html",
        {
            "title": "Training: " + ", ".join(dict.fromkeys(Path(each.row.run).resolve().name for each in told)),
            "refresh": refresh,
            "rows": [_row(each) for each in told],
            "differences": _differences(told),
            "warnings": [(each.name, line.get("text", "")) for each in told for line in each.records
                         if line["kind"] == "warning"],
            "sections": [(name, _charts(told, kind)) for name, kind in zip(SECTIONS, ("train", "val"), strict=True)],
            "probes": [_probes(each.name, found) for each in told for found in each.probes],
        },
    )  # fmt: skip


def write_runs_page(runs: Sequence[Path], out: Path) -> Path:
    """The page as one file. Raises UsageError where `out` is a folder."""
    if out.is_dir():
        raise UsageError(f"{out}: expected a file for the page, got a folder; name one, such as {out / 'report.html'}")
    durable.write_bytes(out, runs_page(read_runs(runs)).encode())
    return out


def _row(each: Told) -> tuple[str, ...]:
    row = each.row
    best = "-" if row.best is None else f"{row.best:.4g}"
    return each.name, row.state, row.progress, best, f"{row.bytes / 1e6:.1f} MB"


def _charts(told: Sequence[Told], kind: str) -> list[tuple[str, Any]]:
    names = dict.fromkeys(
        key for each in told for line in each.records if line["kind"] == kind for key, value in line.items()
        if key not in (set(IGNORED) - {"lr", "data_wait", "samples_per_s"}) and isinstance(value, int | float)
    )  # fmt: skip
    charts = []
    for name in names:
        series = [line for each in told if (line := _series(each, kind, name)).steps]
        shown = [value for line in series for value in line.values if abs(value) < LARGEST]
        wide = bool(shown) and min(shown) > 0 and max(shown) > 20 * min(shown)
        charts.append((name, markup(line_chart(series, "optimizer step", log_y=wide))))
    return charts


def _series(each: Told, kind: str, name: str) -> Series:
    lines = [line for line in each.records if line["kind"] == kind]
    points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    every = -(-len(points) // LONGEST) or 1
    kept = [*points[::every], *points[-1:]] if (len(points) - 1) % every else points[::every]
    return Series(each.name, tuple(float(x) for x, _ in kept), tuple(float(y) for _, y in kept))


def _differences(told: Sequence[Told]) -> list[tuple[str, ...]]:
    """Keys of the configuration on which the runs differ, with each one's value."""
    flat = [dict(_flatten(each.config)) for each in told]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [
        (key, *(str(one.get(key, "-")) for one in flat)) for key in keys if len({str(one.get(key)) for one in flat}) > 1
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _probes(name: str, found: dict[str, Any]) -> dict[str, Any]:
    dots = found["dots"]
    by_task = [Dot(x, y, colour_of(task)) for x, y, task, _ in dots]
    by_progress = [Dot(x, y, f"hsl({260 - 220 * gone:.0f} 60% 50%)") for x, y, _, gone in dots]
    first, second = found["shares"]
    labels = f"first component, {100 * first:.0f} %", f"second, {100 * second:.0f} %"
    rolled = [
        Series(kind, tuple(float(r["steps"]) for r in found["rollouts"]), tuple(r[key] for r in found["rollouts"]))
        for kind, key in (("predicted", "predicted"), ("another frame's actions", "shuffled"), ("copied", "copied"))
    ]
    return {
        "name": f"{name}, step {found['step']:,}",
        "rows": [(probe, f"{value['r2']:.3f}", f"{value['within']:.3f}") for probe, value in found["probes"].items()],
        "facts": f"instruction {100 * found['instruction']:.0f} % (chance {100 * found['chance']:.0f} %), "
        f"deviation {found['z_std']:.3g}, rank {found['z_rank']:.1f}, "
        f"{100 * found['z_within']:.0f} % of the variance within episodes",
        "by_task": markup(scatter(by_task, *labels)),
        "by_progress": markup(scatter(by_progress, *labels)),
        "rollout": markup(line_chart(rolled, "steps ahead", "squared error")) if found["rollouts"] else None,
    }


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """What is wrong, on stderr; nothing of a browser that has left, as each does that loads the page again."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def serve_runs(runs: Sequence[Path], port: int = 0) -> ThreadingHTTPServer:
    """A server of the page on loopback, made anew at every load; call its ``serve_forever``. port: 0 takes a free one.

    Raises UsageError where there is no run yet, or where the port cannot be had.
    """
    read_runs(runs)

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if urlsplit(self.path).path != "/":
                self.send_error(404)
                return
            status = 200
            try:
                page = runs_page(read_runs(runs), REFRESH)
            except (StateVLAError, OSError) as error:  # the page tries again: a run may be made whole meanwhile
                again = f'<!doctype html><meta http-equiv="refresh" content="{REFRESH}">'
                said = describe_trouble(error) if isinstance(error, OSError) else str(error)
                status, page = 503, again + escape(said)
            body = page.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a page that loads itself would fill the terminal."""

    try:
        return _Server(("127.0.0.1", port), Page)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"port {port} cannot be had ({why}); name another with --port, 0 takes a free one") from error
