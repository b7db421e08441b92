"""OpenGL draws the known picture here, whichever library."""

import pytest

from statevla.sims.libero import render_check

pytestmark = pytest.mark.libero


@pytest.mark.parametrize("backend", render_check.BACKENDS)
def test_the_known_picture(simulator_installed: None, backend: str) -> None:
    drawn = render_check.check(backend)
    assert drawn.mean == pytest.approx(render_check.KNOWN_MEAN, abs=render_check.TOLERANCE), drawn.error
    assert drawn.right


def test_a_library_without_driver_says_so(simulator_installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/dev/null")
    drawn = render_check.check("egl")
    assert drawn.mean is None
    assert "libegl-mesa0" in drawn.advice()
