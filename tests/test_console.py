"""What people look at: progress that fits 80 columns, tables instead of Python's own words, plain lines in a log."""

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cli import main
from pipelines.collect.tabletop import collect_tabletop
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from statevla import progress_bars
from statevla.console import cell_text, print_facts, print_markdown, print_table, size_text
from statevla.evaluators.compare_results import PAIR_COLUMNS
from stores.printable import shown
from stores.progress import Progress, ProgressEvent, told
from stores.reader import Store

LONG = " ".join(f"metric_{number} 0.1234" for number in range(20))


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_progress_at_80_columns_has_bar_count_and_one_time_and_metrics_below() -> None:
    console = terminal()
    with progress_bars.bars(console) as progress:
        for step in (1, 2, 500):
            progress(ProgressEvent("train phase 1", step, 1000, "steps", LONG))
    lines = [line for line in text_of(console).splitlines() if line.strip()]
    assert all(len(line) <= 80 for line in lines)
    bar = next(line for line in lines if "500/1,000 steps" in line)
    assert "━" in bar
    assert len(re.findall(r"\d+:\d\d|--:--", bar)) == 1
    assert "metric_0" not in bar
    metrics = next(line for line in lines if "metric_0" in line)
    assert metrics.rstrip().endswith("…")


def test_plain_lines_have_no_control_characters_and_one_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: next(clock))
    update = progress_bars.plain_lines()
    for done in (20, 30, 100):  # a resumed run that starts at 20
        update(ProgressEvent("train", done, 100, "steps", "loss 0.5"))
    assert capsys.readouterr().err.splitlines() == [
        "train: 20/100 steps loss 0.5",
        "train: 30/100 steps loss 0.5 | 1:10 left",
        "train: 100/100 steps loss 0.5",
    ]


def test_what_is_said_is_shown_whole_however_soon_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of progress may be left out or written over, a sentence that nothing repeats may not."""

    def listen(progress: Progress) -> None:
        for number in range(3):
            progress(ProgressEvent("train", number, 9, "steps", f"sentence {number}", said=True))
            progress(ProgressEvent("train", number, 9, "steps", f"loss {number}"))

    console = terminal()
    with progress_bars.bars(console) as drawn:
        listen(drawn)
    listen(progress_bars.plain_lines())
    for lines in (text_of(console).splitlines(), capsys.readouterr().err.splitlines()):
        said = [line.strip() for line in lines if "sentence" in line]
        assert said == [f"train: sentence {number}" for number in range(3)]


def test_what_a_task_waits_for_is_shown_beside_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = progress_bars.plain_lines()
    progress(ProgressEvent("latents", 1, 9, "frames"))
    told(progress, "latents", "frames")("waits for another writer")
    assert "latents: waits for another writer" in capsys.readouterr().err.splitlines()


def test_bytes_are_counted_in_megabytes() -> None:
    assert progress_bars.counts_text(ProgressEvent("verify", 1_500_000, 3_016_246, "B")) == "1.5/3.0 MB"
    assert [size_text(n) for n in (12, 1536, 3_016_246, 42_000_000_000)] == ["12 B", "1.5 kB", "3.0 MB", "42.0 GB"]


def test_a_result_is_shown_without_pythons_brackets() -> None:
    console = terminal()
    print_facts(
        "Ingested",
        {
            "episodes": 12,
            "bytes": 3016246,
            "seconds": 0.72866,
            "splits": {"train": 10, "val": 2},
            "files": ["a_demo.hdf5", "b_demo.hdf5"],
            "notes": [],
            "tasks": {"pick": {"episodes": 7, "frames": 210}, "place": {"episodes": 5, "frames": 156}},
            "quarantine": [{"file": "c.hdf5", "demo": "demo_0", "reason": "[bold]NaN in actions"}],
        },
        console,
    )
    shown = text_of(console)
    assert not set("{}'") & set(shown)
    for part in ("3.0 MB", "0.7 s", "train 10, val 2", "a_demo.hdf5", "pick", "210", "[bold]NaN in actions"):
        assert part in shown
    assert "notes" not in shown


def test_a_table_of_more_columns_than_a_terminal_has_room_for_is_turned() -> None:
    """`bench scaling`: 21 numbers of three stores."""
    console = terminal()
    rows = [{"name": name, **{f"bytes_of_{n}": n * 10**9 for n in range(20)}} for name in ("LIBERO-130", "DROID")]
    print_facts("bench", {"details": rows}, console)
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text_of(console).splitlines()]
    assert ["name", "LIBERO-130", "DROID"] in lines
    assert ["bytes of 19", "19,000,000,000", "19,000,000,000"] in lines


def test_a_long_list_says_how_much_is_not_shown() -> None:
    assert cell_text([f"file {n}" for n in range(15)]).splitlines()[-1] == "… and 3 more (--json lists all)"


def test_markdown_is_drawn_on_a_terminal_and_plain_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    text = "# Results\n\n| task | success |\n| --- | --- |\n| pick | 84 % |"
    print_markdown(text)
    assert capsys.readouterr().out == text + "\n"
    console = terminal()
    print_markdown(text, console)
    assert "|" not in text_of(console)
    assert "84 %" in text_of(console)


def test_no_table_is_wider_than_the_terminal() -> None:
    console = terminal()
    print_table("Problems", ("object", "problem"), [("shards/" + "x" * 100, "y" * 200)], console=console)
    assert max(map(len, text_of(console).splitlines())) <= 80


def cells(console: Console) -> list[list[str]]:
    """Of every line of a table."""
    lines = [line.replace("┃", "│") for line in text_of(console).splitlines()]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_the_first_column_of_a_table_is_not_broken() -> None:
    console = terminal()
    found = "/home/data/stores/libero_spatial/manifest.json is not there; ingest it, or look into /home/elsewhere"
    print_table("Doctor", ("check", "status", "found"), [("libero_spatial", "warning", found)], console=console)
    assert cells(console)[1][:2] == ["libero_spatial", "warning"]
    console = terminal()
    path = "runs/demo/train/checkpoints/phase1_temporal_jepa/checkpoint_latest"
    rows = [("runs/demo/train", "phase1_temporal_jepa", path, n) for n in range(4)]
    print_table("Runs", ("run", "system", "checkpoint", "steps"), rows, console=console)
    assert cells(console)[1][:2] == ["runs/demo/train", "phase1_temporal_jepa"]
    folded = [line[2] for line in cells(console)[1:] if line[2]][:4]
    assert "".join(folded) == path
    assert all(part.endswith("/") for part in folded[:-1])  # broken behind slashes only


@pytest.mark.parametrize("names", [("film-0", "film-1"), ("temporal-jepa-0", "phase2_flow_matching")])
def test_no_word_of_a_comparison_is_broken_at_80_columns(names: tuple[str, str]) -> None:
    console = terminal()
    says = "undecided; about 1200 more trials would decide it"
    row = (*names, "20", "3", "4", "23", "-2 % (-14 to +10)", says)
    print_table("Pair by pair", PAIR_COLUMNS, [row], console=console)
    words = {word for line in cells(console) for cell in line for word in cell.split()}
    assert words == {word for text in (*PAIR_COLUMNS, *row) for word in text.split()}
    assert max(map(len, text_of(console).splitlines())) <= 80


def test_a_path_that_has_no_room_comes_below_the_table_whole() -> None:
    console = terminal()
    path = "runs/tabletop/checkpoints/phase1_temporal_jepa/checkpoint_latest/of/a/very/long/way"
    files = [f"data/raw/tabletop/{'long_' * 16}{n}_demo.hdf5" for n in range(2)]
    print_facts("Trained", {"steps": 300, "checkpoint": path, "files": files, "run": "runs/x"}, console)
    lines = text_of(console).splitlines()
    assert f"checkpoint: {path}" in lines
    assert lines[lines.index("files:") + 1 :] == [f"  {file}" for file in files]
    assert ["run", "runs/x"] in cells(console)
    assert not any("checkpoint" in cell for line in cells(console) for cell in line)


OBEYED = "\x1b]0;mine\x07 \x9b2J \u202egnp \r \u2028 \ud800"
ESCAPED = r"\x1b]0;mine\x07 \x9b2J \u202egnp \r \u2028 \ud800"


def test_what_a_terminal_would_obey_is_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(OBEYED) == ESCAPED
    assert shown("Lege die rote Tasse → Schrank…\n\t紅い") == "Lege die rote Tasse → Schrank…\n\t紅い"
    console = terminal(300)
    print_facts(
        OBEYED, {"suite": OBEYED, "tasks": {OBEYED: {OBEYED: OBEYED}}, "notes": [OBEYED], "x": {OBEYED: 1}}, console
    )
    print_table(OBEYED, (OBEYED,), [(OBEYED,)], console=console)
    print_markdown(f"# {OBEYED}", console)
    assert console.file.getvalue().count(ESCAPED) >= 9
    progress_bars.plain_lines()(ProgressEvent("verify", 1, 1, "B", OBEYED))
    print_markdown(f"# {OBEYED}")
    printed = "".join(capsys.readouterr())
    assert printed.count(ESCAPED) == 2
    for text in (printed, re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())):
        assert not set(text) & set("\x1b\x07\x9b\u202e\r\u2028\ud800")


def test_errors_are_shown_escaped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["statevla", "inspect", "no\x1b[2Jstore"])
    with pytest.raises(SystemExit):
        main()
    assert r"error: no\x1b[2Jstore" in capsys.readouterr().err


def test_a_segment_is_as_long_as_ingest_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    collect_tabletop(tmp_path / "raw", 1)
    words = ["ingest", "tabletop", "--source", str(tmp_path / "raw"), "--out", str(tmp_path / "store")]
    monkeypatch.setattr(sys, "argv", ["statevla", *words, "--language", "hashed", "--window", "7"])
    with pytest.raises(SystemExit):
        main()
    assert Store.open(tmp_path / "store").manifest.config["window"] == 7


def test_inspect_breaks_no_word_of_its_tables_at_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real sources have a fingerprint and the hash of an initial state for each demonstration: those are in --json."""
    collect_tabletop(tmp_path / "raw", 4)
    ingest(IngestConfig("tabletop", tmp_path / "raw", tmp_path / "store", language="hashed"), isolated=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["statevla", "inspect", str(tmp_path / "store")])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert "sha256:" not in out
    header = next(line for line in out.splitlines() if "alignment" in line and "┃" in line)
    assert [cell.strip() for cell in header.strip("┃").split("┃")] == ["file", "bytes", "episodes", "alignment"]
    for line in (
        "camera agentview: 64 x 64",
        "robot state joint_pos: 7 rad",
        "action rotation: rx, ry, rz; continuous; OSC_POSE delta",
        "action gripper: 1; binary; -1 open, +1 close",
    ):
        assert line in out
