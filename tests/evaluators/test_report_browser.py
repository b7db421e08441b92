"""The page in a browser, on a phone and on a wide screen: nothing wider than it, no word in the console."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from statevla.reports.page import Report, page
from tests.evaluators.test_report import offline as offline
from tests.evaluators.test_report import report as report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page's look is NOT tested")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
)  # fmt: skip
PROBE = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(event.message));
for (const kind of ["error", "warn"]) { console[kind] = (...words) => wrong.push(words.join(" ")); }
addEventListener("load", () => setTimeout(() => {
  const outside = (e) => !e.closest(".card, .scroll, pre") && e.getBoundingClientRect().right > innerWidth + 0.5;
  const wide = [...document.querySelectorAll("body *")].filter(outside).map((e) => e.outerHTML.slice(0, 80));
  const sizes = [...document.querySelectorAll(".chart text")].map((e) => {
    const svg = e.closest("svg"); return 12 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width; });
  const film = document.querySelector(".film"), slider = film.querySelector("input");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  const paused = film.querySelector("button").textContent;
  const scroll = document.documentElement.scrollWidth, smallest = Math.min(...sizes), largest = Math.max(...sizes);
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify({wrong, wide, inner: innerWidth, scroll, paused, smallest, largest});
  document.body.append(out);
}, 500));
</script>"""
FRAME = '<!doctype html><iframe src="page.html" style="border:0;width:{width}px;height:1200px"></iframe>'
"""A window may not be narrower than 500 pixels; a frame may."""


def looked_at(folder: Path, text: str, width: int) -> dict[str, object]:
    """What the probe finds in the page at that width."""
    assert CHROMIUM is not None
    inside = PROBE.replace("document.body.append(out)", "(parent.document.body || document.body).append(out)")
    (folder / "page.html").write_text(text.replace("<style>", inside + "<style>", 1))
    (folder / "frame.html").write_text(FRAME.format(width=width))
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},1200"]
    done = subprocess.run(
        [*command, "--allow-file-access-from-files", "--dump-dom", str(folder / "frame.html")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    result: dict[str, object] = json.loads(html.unescape(found.group(1)))
    return result


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_and_its_console_is_silent(report: Report, tmp_path: Path, width: int) -> None:
    found = looked_at(tmp_path, page(report), width)
    assert found["wrong"] == []
    assert found["wide"] == []
    assert isinstance(found["scroll"], int)
    assert found["scroll"] <= width == found["inner"]
    assert found["paused"] == "play"
    assert isinstance(found["smallest"], float | int)
    assert found["smallest"] >= 10
