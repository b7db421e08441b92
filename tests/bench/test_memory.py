"""Memory of a step on a CPU: in a process of its own, and more for more rows."""

from statevla.bench.memory import apart, main, markdown


def test_more_rows_take_more_memory() -> None:
    small, large = (apart("tiny", 1, rows) for rows in (8, 128))
    assert small is not None
    assert large is not None
    assert large["peak_gb"] > 1.5 * small["peak_gb"] > 0


def test_the_table(capsys) -> None:
    assert main(["--preset", "tiny", "--batches", "8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("preset tiny, float32, ")
    assert out.splitlines()[-1].startswith("| 8 | 0.")
    assert markdown([(8, None, {"peak_gb": 1.234})]).splitlines()[-1] == "| 8 | killed | 1.23 |"
