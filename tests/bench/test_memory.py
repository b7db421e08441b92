"""Memory of a step on a CPU: in a process of its own, and more for more rows."""

import pytest

from statevla.bench import memory


@pytest.mark.slow
def test_more_rows_take_more_memory() -> None:
    small, large = (memory.apart("tiny", 1, rows) for rows in (2, 32))
    assert small is not None
    assert large is not None
    assert large["peak_gb"] > 1.5 * small["peak_gb"] > 0


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def found(preset: str, phase: int, batch: int) -> dict[str, float] | None:
        return None if batch > 8 and phase == 1 else {"peak_gb": batch / 8 + 0.234 * phase, "before_gb": 0.4}

    monkeypatch.setattr(memory, "apart", found)
    assert memory.main(["--preset", "tiny", "--batches", "8,16"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("preset tiny, float32, ")
    assert out.splitlines()[-2:] == ["| 8 | 1.23 | 1.47 |", "| 16 | killed | 2.47 |"]
