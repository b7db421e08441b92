"""Listing runs, and the page that shows them: what is there is shown, what is not is said."""

import json
import os
import shutil
import socket
import struct
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import app
from statevla.reports.runs_page import read_runs, runs_page, serve_runs
from statevla.runs import layout
from statevla.runs.listing import list_runs
from statevla.systems.table import find_system
from statevla.trainers.trainer import train
from stores.disk.lock import LOCK_NAME, lock
from stores.errors import StoreCorrupt, UsageError
from tests.trainers.micro import config_of_all, micro_store

JEPA = "temporal_jepa"


class Listed(list[os.DirEntry[str]]):
    """What `os.scandir` gives, of a folder that was read to its end."""

    def __enter__(self) -> "Listed":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def __next__(self) -> os.DirEntry[str]:
        if not self:
            raise StopIteration
        return self.pop(0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("listing")
    store = micro_store(root / "store")
    for name, rate in (("a", "1e-3"), ("b", "2e-3")):
        config = config_of_all(
            "training.max_steps=2", "training.validate_every_steps=1", f"training.phase1.learning_rate={rate}"
        )
        train(JEPA, config, store, root / "runs" / name)
    return root / "runs"


def test_runs_are_listed_as_they_stand(runs: Path, tmp_path: Path) -> None:
    rows = list_runs(runs)
    assert [(Path(row.run).name, row.system, row.step, row.steps, row.state) for row in rows] == [
        ("a", JEPA, 2, 2, "finished"), ("b", JEPA, 2, 2, "finished"),
    ]  # fmt: skip
    assert rows[0].best is not None
    assert rows[0].bytes > 10_000
    folder = layout.checkpoints(tmp_path / "deep" / "c", find_system(JEPA).folder)
    folder.mkdir(parents=True)
    assert list_runs(tmp_path) == []
    with lock(folder, "train"):
        assert [(row.state, row.step) for row in list_runs(tmp_path)] == [("training", None)]
        metrics = layout.metrics(folder.parents[1], folder.name)
        metrics.write_text('{"step": 25, "kind": "train"}\n{"step": 50, "kind": "train"}\n')
        assert [(row.state, row.step) for row in list_runs(tmp_path)] == [("training", 50)]
        shutil.copytree(runs / "a/checkpoints", folder.parents[1] / "checkpoints", dirs_exist_ok=True)
        assert [(row.state, row.step, row.steps) for row in list_runs(tmp_path)] == [("training", 50, 2)]
        metrics.write_text('{"step": 1, "kind')
        assert [(row.state, row.step) for row in list_runs(tmp_path)] == [("training", 2)]
        shutil.rmtree(folder / layout.LATEST)
    assert list_runs(tmp_path) == []
    (folder / layout.LATEST).mkdir()
    (folder / layout.LATEST / "state.json").write_text("{")
    assert [row.state for row in list_runs(tmp_path)] == ["damaged"]


def test_a_lock_that_a_dead_process_left_is_no_holder(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    shutil.copytree(runs / "a", run)
    folder = layout.checkpoints(run, find_system(JEPA).folder)
    for pid, host in ((1, "elsewhere"), (os.getpid(), socket.gethostname())):  # a number may be somebody else's by now
        (folder / LOCK_NAME).write_text(json.dumps({"pid": pid, "host": host}))
        assert [row.state for row in list_runs(tmp_path)] == ["finished"]
    state = json.loads((folder / layout.LATEST / layout.STATE).read_text())
    state["scheduler"]["total_steps"] = 9
    (folder / layout.LATEST / layout.STATE).write_text(json.dumps(state))
    assert [row.state for row in list_runs(tmp_path)] == ["stopped"]
    (folder / LOCK_NAME).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert [row.state for row in list_runs(tmp_path)] == ["held on elsewhere"]
    with lock(folder, "train"):
        (folder / LOCK_NAME).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
        assert [row.state for row in list_runs(tmp_path)] == ["training"]
    assert [row.run for row in list_runs(run)] == [str(run)]  # a run is its own list


def test_a_checkpoint_that_is_replaced_while_it_is_listed_is_no_error(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    folder = layout.checkpoints(tmp_path / "a", find_system(JEPA).folder)
    scandir = os.scandir

    def listed(path: Any = ".") -> Any:
        """The best checkpoint goes after its folder was listed, and before it is looked into."""
        entries = scandir(path)
        if not isinstance(path, int) and Path(os.fspath(path)) == folder:
            found = Listed(entries)
            shutil.rmtree(folder / layout.BEST)
            return found
        return entries

    monkeypatch.setattr(os, "scandir", listed)
    (row,) = list_runs(tmp_path)
    monkeypatch.undo()
    assert not (folder / layout.BEST).exists()
    assert (row.state, row.step) == ("finished", 2)
    assert row.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_that_ended_before_its_first_checkpoint_is_there(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "ended"
    folder = find_system(JEPA).folder
    layout.checkpoints(run, folder).mkdir(parents=True)
    for path in (layout.starts, layout.configuration, layout.metrics):
        shutil.copy(path(runs / "a", folder), path(run, folder))
    (row,) = list_runs(tmp_path)
    assert (row.system, row.state, row.step, row.steps, row.best) == (folder, "no checkpoint", 2, None, None)
    page = runs_page(read_runs([run]))
    assert "<h3>loss</h3>" in page
    assert "2 of 0" not in page  # how long it was to be stands in checkpoints alone
    told = CliRunner().invoke(app, ["runs", str(tmp_path)], env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.exception
    (line,) = (line for line in told.stdout.splitlines() if line.startswith("│ ended"))
    assert [cell.strip() for cell in line.strip("│").split("│")][3] == "2"
    layout.metrics(run, folder).unlink()  # before its first step, even
    assert [(row.state, row.step) for row in list_runs(tmp_path)] == [("no checkpoint", None)]
    assert "no checkpoint" in runs_page(read_runs([run]))


def test_runs_that_are_nowhere_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        list_runs(tmp_path / "nowhere")


def test_the_table_of_runs_breaks_no_word_at_80_columns(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "few-labels" / "encoder-stamo")
    told = CliRunner().invoke(app, ["runs", str(tmp_path)], env={"COLUMNS": "80"}).stdout
    assert max(map(len, told.splitlines())) <= 80
    words = told.replace("│", " ").split()
    assert {"few-labels/", "encoder-stamo", "finished", JEPA, "store", "2", "MB"} <= set(words) | {"MB"}


def test_two_runs_side_by_side_on_one_page(runs: Path) -> None:
    warning = {"kind": "warning", "step": 2, "monitor": "z_std", "text": "z_std is <0.01>: collapsed"}
    metrics = layout.metrics(runs / "b", find_system(JEPA).folder)
    before = metrics.read_text()
    metrics.write_text(before + json.dumps(warning) + "\n")
    try:
        page = runs_page(read_runs([runs / "a", runs / "b"]))
    finally:
        metrics.write_text(before)
    assert "training.phase1.learning_rate" in page
    assert "0.002" in page
    assert "training.seed" not in page  # the same in both
    for name in ("loss", "jepa_mse", "z_rank", "action_ratio", "grad_norm", "data_wait"):
        assert f"<h3>{name}</h3>" in page
    assert page.count('stroke="var(--s1)"') >= 10
    assert "z_std is &lt;0.01&gt;: collapsed" in page
    assert "http" not in page.replace("http-equiv", "")
    assert 'http-equiv="refresh"' not in page


def test_runs_of_one_name_are_told_apart_and_the_folder_one_is_in_has_a_name(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shutil.copytree(runs / name, tmp_path / name / "train")
    both = [tmp_path / "a/train", tmp_path / "b/train"]
    assert [told.name for told in read_runs(both)] == ["a", "b"]
    with pytest.raises(UsageError, match="named twice"):
        read_runs([both[0], both[0] / "../train"])
    monkeypatch.chdir(both[0])
    (told,) = read_runs([Path()])
    assert told.name == f"train {JEPA}"
    assert "<title>Training: train</title>" in runs_page([told])


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("eval/probes-x/probes.json", '{"check', "not JSON"),
        ("eval/probes-x/probes.json", "[]", "expected an object"),
        ("eval/probes-x/probes.json", '{"checkpoint": "x"}', "expected step, probes"),
        ("config_phase1_temporal_jepa.json", "{", "not JSON"),
        ("metrics_phase1_temporal_jepa.jsonl", "nothing\n", "not JSON"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_on_the_live_page_too(
    runs: Path, tmp_path: Path, file: str, text: str, said: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "b", run)
    server = serve_runs([run])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text(text)
        with pytest.raises(StoreCorrupt, match=said) as caught:
            read_runs([run])
        assert file in str(caught.value)
        with pytest.raises(urllib.error.HTTPError, match="503") as answer:
            urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/")
        assert said in answer.value.read().decode()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_line_that_is_being_written_is_not_on_the_page(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    shutil.copytree(runs / "a", run)
    metrics = layout.metrics(run, find_system(JEPA).folder)
    before = runs_page(read_runs([run]))
    metrics.write_bytes(metrics.read_bytes() + b'{"kind": "train", "step": 3, "text": "\xc3')
    assert runs_page(read_runs([run])) == before


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e308", "1e-320"])
def test_a_number_that_no_axis_can_show_keeps_no_page_from_being_made(runs: Path, tmp_path: Path, value: str) -> None:
    run = tmp_path / "a"
    shutil.copytree(runs / "a", run)
    lines = [f'{{"kind": "val", "step": {step}, "ratio": {number}}}\n' for step, number in ((1, "2.5"), (2, value))]
    layout.metrics(run, find_system(JEPA).folder).write_text("".join(lines))
    page = runs_page(read_runs([run]))
    assert "<h3>ratio</h3>" in page
    assert page.count("<circle") == 1  # the other one
    layout.metrics(run, find_system(JEPA).folder).write_text(lines[1])
    assert "<h3>ratio</h3>" in runs_page(read_runs([run]))  # where there is no other number either


def test_what_is_no_number_is_not_drawn_and_a_step_that_is_none_is_named(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    shutil.copytree(runs / "a", run)
    lines = [{"kind": "val", "step": step, "ratio": ratio} for step, ratio in ((1, 2.5), (2, None), (3, "none"))]
    metrics = layout.metrics(run, find_system(JEPA).folder)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"kind": "warning", "step": 3}]))
    assert runs_page(read_runs([run])).count("<circle") == 1
    metrics.write_text(json.dumps({"kind": "val", "step": None}) + "\n")
    with pytest.raises(StoreCorrupt, match="line 1: step: expected a whole number, got None"):
        read_runs([run])


def test_probes_stand_on_the_page(runs: Path, tmp_path: Path) -> None:
    run = runs / "a"
    folder = run / "eval/probes-x"
    folder.mkdir(parents=True)
    rollouts = [{"steps": k, "predicted": 0.1 * k, "shuffled": 0.3, "copied": 0.2, "frames": 9} for k in (1, 2)]
    found = {
        "checkpoint": str(layout.checkpoints(run, find_system(JEPA).folder) / layout.LATEST), "step": 2,
        "probes": {"robot_state": {"r2": 0.875, "within": 0.5, "width": 9}}, "instruction": 0.9, "chance": 0.25,
        "z_std": 0.8, "z_rank": 12.0, "z_within": 0.4, "rollouts": rollouts, "shares": [0.5, 0.2],
        "dots": [[0.0, 1.0, 0, 0.0], [1.0, 0.0, 1, 1.0]],
    }  # fmt: skip
    (folder / "probes.json").write_text(json.dumps(found))
    page = runs_page(read_runs([run]))
    assert "0.875" in page
    assert "instruction 90 % (chance 25 %)" in page
    assert "Predicted against true" in page


def test_a_live_page_is_made_anew_and_nothing_else_is_served(runs: Path) -> None:
    server = serve_runs([runs / "a"])
    assert server.server_address[0] == "127.0.0.1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        at = f"http://127.0.0.1:{server.server_port}/"
        first = urllib.request.urlopen(at).read().decode()
        assert 'http-equiv="refresh" content="5"' in first
        metrics = layout.metrics(runs / "a", find_system(JEPA).folder)
        with metrics.open("a") as file:
            file.write(json.dumps({"kind": "train", "step": 3, "novel_monitor": 1.5}) + "\n")
        assert "<h3>novel_monitor</h3>" in urllib.request.urlopen(at).read().decode()
        assert urllib.request.urlopen(f"{at}?again=1").status == 200  # a link that keeps a browser from its own copy
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(at + "config_phase1_temporal_jepa.json")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_live_page_outlives_what_it_cannot_read_and_who_does_not_wait(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "b", run)
    server = serve_runs([run])
    server.daemon_threads = False  # closing it waits for every answer
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(UsageError, match=f"port {server.server_port} cannot be had .*--port"):
            serve_runs([run], server.server_port)
        for _ in range(3):
            hasty = socket.create_connection(("127.0.0.1", server.server_port))
            hasty.send(b"GET / HTTP/1.1\r\n")
            hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
            hasty.close()
        (run / "eval/probes-x/probes.json").mkdir(parents=True)  # not even a file
        with pytest.raises(urllib.error.HTTPError, match="503") as answer:
            urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/")
        assert "probes-x/probes.json" in answer.value.read().decode()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--follow", "--out", "page.html"), "leave out --out and --json"),
        (("--follow", "--json"), "leave out --out and --json"),
        (("--port", "0"), "without it nothing is served"),
        (("--out", "."), "expected a file for the page, got a folder"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(runs: Path, flags: tuple[str, ...], complaint: str) -> None:
    made = CliRunner().invoke(app, ["report", str(runs / "a"), *flags])
    assert isinstance(made.exception, UsageError)
    assert complaint in str(made.exception)


def test_commands(runs: Path, tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["runs", str(runs), "--json"])
    assert [row["state"] for row in json.loads(listed.stdout)["runs"]] == ["finished", "finished"]
    page = tmp_path / "page.html"
    made = CliRunner().invoke(app, ["report", str(runs / "a"), str(runs / "b"), "--out", str(page), "--json"])
    assert json.loads(made.stdout) == {"page": str(page)}
    assert page.read_text().startswith("<!doctype html>")
    with pytest.raises(UsageError, match="no run here"):
        read_runs([tmp_path])
