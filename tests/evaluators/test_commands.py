"""The commands that measure and explain, asked for what cannot be: one line, and wrong usage."""

from pathlib import Path

import pytest

from cli import app
from stores.errors import StoreMissing, UsageError


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("eval robustness --suite tabletop --policy expert", "expected one of libero_spatial"),
        ("eval robustness --suite libero_objet --policy expert", "libero_object"),
        ("eval robustness --policy expert --only fog", "no row 'fog'"),
        ("eval robustness --policy replay-demos", "no demonstrations were given"),
        ("eval language --suite libero_object", "no policy's checkpoint below runs/"),
        ("reproduce libero_90", "libero_90: expected one of libero_object"),
        ("collect nosuch", "no suite 'nosuch'. Suites: tabletop, libero_spatial, libero_object"),
        ("collect table_top", "Did you mean 'tabletop'?"),
        ("collect tabletop --from-policy runs/x", "--from-policy: for LIBERO; leave out with tabletop"),
        ("collect tabletop --dry-run --noise 0.2 --scatter 0.5", "--noise, --scatter, --dry-run: for LIBERO"),
        ("collect tabletop --noise-share 0.3", "--noise-share: for LIBERO; leave out with tabletop"),
        ("collect libero_object --dry-run --noise-share 0.3", "--noise-share: not seen by --dry-run"),
        ("collect libero_object --dry-run --init-states 5", "--init-states: not seen by --dry-run"),
        (
            "collect libero_object --replan 5",
            "--replan, --ensemble: how a policy's chunks are executed; give --from-policy",
        ),
        ("collect libero_object --dry-run --from-policy runs/x", "--from-policy: records, and --dry-run does not"),
    ],
)
def test_what_cannot_be_is_one_line(
    command: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        app(command.split(), standalone_mode=False)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_fixtures_are_one_of_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        app(["eval", "libero", "--fixtures", "moved"])
    assert caught.value.code == 2
    assert "moved" in capsys.readouterr().err


def test_a_diagnosis_is_of_a_policy_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreMissing, match="nowhere"):
        app(["diagnose", "nowhere"], standalone_mode=False)
