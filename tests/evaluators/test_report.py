"""The report page: well-formed, self-contained, escaped, with everything that it was given."""

import io
import json
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from statevla.evaluators.intervals import wilson
from statevla.evaluators.offline_results import OfflineResults, Smoothness
from statevla.evaluators.results import Results, summarize
from statevla.evaluators.trials import Outcome, Record, RunDescription
from statevla.observation import Observation
from statevla.reports.charts import Bar, Dot, Series, line_chart, panel, rate_chart
from statevla.reports.films import Clip, frames_of_gif, gif_bytes, png_bytes
from statevla.reports.page import (
    Curves,
    Demonstration,
    OfflineRows,
    Picture,
    PolicyRow,
    Report,
    ReportStep,
    Scatter,
    Traces,
    Video,
    page,
    write_report,
)
from statevla.reports.render import render
from stores.spec import LIBERO

NASTY = "put <script>alert('x')</script> & \"that\" in the bowl"
VOID = {"meta", "img", "input", "line", "rect", "path", "polyline", "circle"}


class Checker(HTMLParser):
    """Collects elements and proves that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def results(successes: int, trials: int) -> Results:
    def record(number: int, outcome: Outcome) -> Record:
        message = "RuntimeError: <b>" if outcome == "error" else ""
        video = "videos/a&b.gif" if number == 0 else ""
        return Record("tabletop", "t", 0, number, 0, NASTY, outcome, 31, 0.5, "a" * 64, "b" * 64, message, video)

    records = [record(i, "success" if i < successes else "failure") for i in range(trials)]
    description = RunDescription("tabletop", "a" * 64, 5, None, True, 2, 100, 0, 32, 0, {"numpy": "2"})
    records.append(record(trials, "error"))
    return summarize("run <1>", description, records, {"t": NASTY}, [12.0, 19.0], seconds=2.0, steps_run=31)


def policy_row(name: str, successes: int, trials: int) -> PolicyRow:
    steps = 31.5 if successes else None
    return PolicyRow(
        name, "all", successes / trials, wilson(successes, trials), successes, trials, 1, steps, (12.0, 19.0),
        {NASTY: (successes, trials, *wilson(successes, trials))},
    )  # fmt: skip


@pytest.fixture
def offline() -> OfflineResults:
    return OfflineResults(
        split="val",
        episodes=3,
        frames=90,
        mse=dict.fromkeys(LIBERO.action_names, 0.125),
        mse_normalized=0.25,
        mse_normalized_by_dimension=dict.fromkeys(LIBERO.action_names[:6], 0.25),
        mse_normalized_by_horizon=[0.2, 0.3, None],
        baseline_mean_action_mse_normalized=1.0,
        gripper_accuracy=0.9,
        gripper_transition_f1=None,
        gripper_ece=0.05,
        smoothness=Smoothness(0.1, 0.2, None, None),
    )


@pytest.fixture
def report() -> Report:
    seen = Observation(tuple(np.zeros((2, 8, 8, 3), np.uint8)), np.zeros(9, np.float32), NASTY)
    return Report(
        title="Demo <1>",
        about="About & so on",
        ok=True,
        verdict="It learned.",
        steps=(ReportStep("collect", 1.25, "12 episodes"), ReportStep("ingest", 2.5, NASTY)),
        pictures=(Picture(png_bytes(seen.images, 16), NASTY),),
        store=(("episodes", "12"),),
        curves=(Curves("Phase 1", (Series("train", (1.0, 2.0), (1.0, 0.1)),), "best at step 2"),),
        offline=OfflineRows(
            "val split", (("MSE, normalized", "0.25"),), (("rx", "0.125", "0.25"),), (Series("p", (0.0,), (0.2,)),)
        ),
        policies=(policy_row("trained", 9, 10), policy_row("untrained", 0, 10)),
        videos=(
            Video(*frames_of_gif(gif_bytes(Clip((seen,) * 4, "success"), 16)), NASTY, "success"),
            Video(*frames_of_gif(gif_bytes(Clip((seen,) * 4, "failure"), 16)), NASTY, "failure"),
        ),
        configuration="seed: 0\nname: <x>",
        machine=(("CPU", "2 cores"),),
        commands=("statevla demo --seed 0 --out 'a & b'",),
        traces=Traces(NASTY, (panel("x", [Series("true", (0.0, 1.0), (0.5, 0.2))], 0.0, 1.0),), ("rx", "ry")),
        demonstrations=(Demonstration(png_bytes(seen.images, 16), NASTY, panel("2 steps", [], 0.0, 1.0)),),
        moving=("x", "gripper"),
        states=Scatter((Dot(0.0, 1.0, "red"),), (Dot(0.0, 1.0, "red"), Dot(1.0, 1.0, "blue")), (NASTY,), 0.5, 0.25, 7),
    )


def test_the_page_is_well_formed_and_self_contained(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "report.html", report)
    text = (tmp_path / "new" / "report.html").read_text()
    assert text == page(report)
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    names = {tag for tag, _ in checker.elements}
    assert not names & {"link", "iframe", "object", "base"}
    assert not [attributes for tag, attributes in checker.elements if tag == "script" and "src" in attributes]
    assert not re.search(r"https?://|//[a-z]|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert not [a for _, a in checker.elements if "href" in a]
    assert "prefers-color-scheme: dark" in text


def test_images_are_embedded_and_whole(report: Report) -> None:
    checker = Checker()
    checker.feed(page(report))
    sources = [attrs["src"] for tag, attrs in checker.elements if tag == "img"]
    kinds = []
    for source in sources:
        assert source is not None
        head, _, data = source.partition(",")
        with Image.open(io.BytesIO(b64decode(data, validate=True))) as image:
            image.load()
            kinds.append((head, image.format))
    films, pictures = [("data:image/jpeg;base64", "JPEG")] * 2, [("data:image/png;base64", "PNG")] * 2
    assert kinds == films + pictures


def test_films_can_be_scrubbed_and_failures_come_first(report: Report) -> None:
    text = page(report)
    outcomes = re.findall(r'class="outcome (\w+)"', text)
    assert outcomes == ["failure", "success"]
    frames = [json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    assert [len(film) for film in frames] == [3, 3]  # of four observations, every second and the last
    assert all(frame.startswith("data:image/jpeg;base64,") for film in frames for frame in film)
    assert text.count('max="2"') == 2


def test_every_figure_says_what_to_see(report: Report) -> None:
    text = page(report)
    for figure in re.findall(r"<figure.*?</figure>", text, re.DOTALL):
        assert "<figcaption" in figure
    assert "rx, ry never move" in text
    assert "logarithmic scale" in text


def test_everything_given_is_shown_and_escaped(report: Report) -> None:
    text = page(report)
    checker = Checker()
    checker.feed(text)
    shown = " ".join(checker.text)
    for wanted in (
        "Demo <1>",
        NASTY,
        "9 of 10",
        "0 of 10",
        "90\N{NO-BREAK SPACE}%",
        "60\N{NO-BREAK SPACE}% to 98\N{NO-BREAK SPACE}%",
        "3.8 s",
        "name: <x>",
        "2 cores",
    ):
        assert wanted in shown
    assert "<script>alert" not in text
    assert 'class="verdict ok"' in text
    assert 'class="verdict"' in page(replace(report, ok=False))


def test_bars_are_as_long_as_their_rates() -> None:
    chart = rate_chart(
        [Bar("a", 1.0, (0.5, 1.0), "x"), Bar("b", 0.25, (0.0, 0.5), "y"), Bar("c", None, (0.0, 1.0), "z")]
    )
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    assert len(widths) == 2
    assert widths[1] == pytest.approx(widths[0] / 4)


def test_lines_are_logarithmic() -> None:
    chart = line_chart([Series("loss", (0.0, 1.0, 2.0, 3.0), (1.0, 0.1, 0.01, -1.0))], "step")
    points = re.search(r'points="([^"]+)"', chart)
    assert points is not None
    xy = np.array([pair.split(",") for pair in points.group(1).split()], float)
    assert len(xy) == 3  # -1 has no logarithm
    assert np.diff(xy[:, 1]) == pytest.approx([np.diff(xy[:, 1])[0]] * 2, abs=0.11)
    assert np.diff(xy[:, 0]) == pytest.approx([np.diff(xy[:, 0])[0]] * 2, abs=0.11)
    for tick in ("1", "0.1", "0.01"):
        assert f">{tick}</text>" in chart


@pytest.mark.parametrize("values", [(), (0.5,), (0.5, 0.5), (0.31, 0.42)])
def test_degenerate_lines_are_drawn(values: tuple[float, ...]) -> None:
    chart = line_chart([Series("loss", tuple(float(i) for i in range(len(values))), values)], "step")
    assert ("<svg" in chart) == bool(values)
    assert chart.count("<circle") == len(values)
    assert "nan" not in chart


def test_saved_results_are_json_and_markdown(offline: OfflineResults, tmp_path: Path) -> None:
    offline.save(tmp_path)
    results(3, 4).save(tmp_path)
    data = json.loads((tmp_path / "offline.json").read_text())
    assert list(data["mse"]) == sorted(LIBERO.action_names)
    fixed = {"mse", "mse_normalized", "baseline_mean_action_mse_normalized", "gripper_accuracy", "episodes", "frames"}
    assert fixed <= set(data)
    data = json.loads((tmp_path / "results.json").read_text())
    assert {"success", "trials", "interval", "errors", "per_task", "identity", "records"} <= set(data)
    assert data["interval"] == pytest.approx(list(wilson(3, 4)))
    assert "| rx | 0.125 | 0.25 |" in (tmp_path / "offline.md").read_text()
    text = (tmp_path / "results.md").read_text()
    assert "| all | 75 % |" in text
    assert "5 actions of each chunk, by vote, 2 steps late" in text


def test_the_page_of_an_evaluation_is_whole_and_escaped(tmp_path: Path) -> None:
    text = results(3, 4).page()
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    shown = " ".join(checker.text)
    for wanted in ("run <1>", NASTY, "75 %", "RuntimeError: <b>", "3 / 4"):
        assert wanted in shown
    assert "<script>alert" not in text
    (film,) = [attributes for tag, attributes in checker.elements if tag == "img"]
    assert film["src"] == "videos/a&b.gif"
    rates = [attributes for tag, attributes in checker.elements if attributes.get("class") == "value"]
    assert [rate["width"] for rate in rates] == ["75.0"]


def test_only_bundled_templates_are_read_and_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("results.html", {"title": "no rows"})
    with pytest.raises(jinja2.TemplateNotFound):
        render("../page.py", {})
