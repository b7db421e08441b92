"""Binary actions of LeRobot datasets: {0, 1} and what was told of them, in the store as -1 open and +1 close."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("av")

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.sources.fields import Fields
from stores.errors import SourceError
from stores.reader import Store
from tests.pipelines.make_lerobot import DATA, lengths, write_dataset

KINDS = Fields.from_dict(
    {"action": [{"name": "arm", "width": 1, "kind": "continuous"}, {"name": "hand", "width": 1, "kind": "binary"}]}
)
ROWS = sum(lengths(3))
CLOSED = np.arange(ROWS) // 3 % 2 == 1


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "cloths", episodes=3)


def set_hand(root: Path, values: np.ndarray) -> None:
    table = pq.read_table(root / DATA)
    place = table.column_names.index("action")
    action = np.stack(table["action"].to_pylist()).astype(np.float32)
    action[:, 1] = values
    column = pa.array(list(action), type=table.schema.field("action").type)
    pq.write_table(table.set_column(place, table.schema.field("action"), column), root / DATA)


def run(root: Path, fields: Fields | None = KINDS, **options: str) -> tuple[IngestSummary, np.ndarray]:
    """Ingest it; the store's actions."""
    store = root.parent / "store"
    found = ingest(
        IngestConfig("lerobot", root, store, codec="png", language="hashed", fields=fields, **options),  # type: ignore[arg-type]
        isolated=False,
    )
    return found, Store.open(store).frames["action"]


@pytest.mark.parametrize(("told", "sign"), [("high-closes", 1.0), ("high-opens", -1.0)])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_both_forms_become_minus_and_plus_one(dataset: Path, told: str, sign: float, low: float) -> None:
    set_hand(dataset, np.where(CLOSED, 1.0, low))
    before = np.stack(pq.read_table(dataset / DATA)["action"].to_pylist())
    summary, action = run(dataset, gripper=told)
    np.testing.assert_array_equal(action[:, 1], np.where(CLOSED, sign, -sign))
    np.testing.assert_array_equal(action[:, 0], before[:, 0].astype(np.float32))
    assert any("converted to -1 open, +1 close" in note for note in summary.notes) is (low == 0.0 or sign < 0)


def test_what_is_minus_and_plus_one_stays_untold(dataset: Path) -> None:
    set_hand(dataset, np.where(CLOSED, 1.0, -1.0))
    summary, action = run(dataset)
    np.testing.assert_array_equal(action[:, 1], np.where(CLOSED, 1.0, -1.0))
    assert not any("converted" in note for note in summary.notes)


def test_told_otherwise_later_the_store_is_made_anew(dataset: Path) -> None:
    set_hand(dataset, CLOSED.astype(np.float32))
    _, first = run(dataset, gripper="high-closes")
    _, then = run(dataset, gripper="high-opens")
    np.testing.assert_array_equal(then[:, 1], -first[:, 1])


REFUSED: dict[str, tuple[Callable[[], np.ndarray], str]] = {
    "nobody said which closes": (
        lambda: CLOSED.astype(np.float32),
        "action, hand: binary, expected -1 (open) and +1 (close), got 0 to 1; pass --gripper high-closes (1 closes) or",
    ),
    "a width in metres": (
        lambda: np.where(CLOSED, 0.0, 0.08),
        "action, hand: binary, expected -1 and +1, or 0 and 1, got 0 to 0.08: a width or a force?",
    ),
    "how far it is open, from 0 to 1": (
        lambda: np.linspace(0, 1, ROWS),
        "action, hand: binary, expected 0 and 1 alone, got numbers between them (mean 0.5, std 0.3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_numbers_do_not_tell_is_refused(dataset: Path, case: str) -> None:
    values, message = REFUSED[case]
    set_hand(dataset, values())
    with pytest.raises(SourceError, match=re.escape(message)):
        run(dataset)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_what_would_be_cut_to_two_values_is_refused(dataset: Path, low: float) -> None:
    """A hand that is half open in the demonstrations must not become one that is open."""
    set_hand(dataset, np.linspace(low, 1, ROWS))
    with pytest.raises(SourceError, match=r"got numbers between them .*: a position\? Declare it continuous"):
        run(dataset, gripper="high-opens")


def test_a_flag_for_no_binary_action_is_refused(dataset: Path) -> None:
    with pytest.raises(SourceError, match=r"--gripper high-opens: no action is binary \(--spec says which are\)"):
        run(dataset, fields=None, gripper="high-opens")
