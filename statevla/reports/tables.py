"""Tables and numbers as text."""

from collections.abc import Sequence


def percent(rate: float | None) -> str:
    """``0.84`` -> ``84 %``; a dash for no rate."""
    return "-" if rate is None else f"{100 * rate:.0f} %"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; pipes in cells are escaped."""
    lines = [headers, ("---",) * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
