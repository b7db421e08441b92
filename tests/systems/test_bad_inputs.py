"""What users ask of systems that cannot be had: one clear line each."""

from pathlib import Path

import pytest

from statevla.config.load import load_config
from statevla.systems.system import Given
from statevla.systems.table import SYSTEMS, find_system, sections
from statevla.trainers.parents import load_parent
from statevla.trainers.trainer import train
from stores.errors import StaleKey, UsageError
from stores.reader import Store
from tests.models.build import normalization, statistics
from tests.stores.make_store import make_tiny_store
from tests.trainers.micro import SETTINGS, micro_store

POLICIES = [row for row in SYSTEMS if row.kind == "policy"]


@pytest.mark.parametrize("row", [row for row in POLICIES if "." not in row.section], ids=lambda row: row.name)
def test_another_systems_option(row) -> None:  # type: ignore[no-untyped-def]
    key, owner = ("kl_weight", "act") if row.name != "act" else ("patch_size", "model")
    with pytest.raises(
        UsageError, match=rf"unknown configuration key '{row.section}.{key}': {key} is an option of {owner}"
    ):
        load_config("tiny", None, (f"{row.section}.{key}=1",), sections())


@pytest.mark.parametrize(("options", "named"), [
    (("act.heads=5",), r"act\.heads: 5 heads cannot share act\.width 64"),
    (("vla.width=65",), r"vla\.heads: 4 heads cannot share vla\.width 65"),
    (("goal.heads=5",), r"goal\.heads: 5 heads cannot share goal\.width 64"),
    (("stamo.heads=3",), r"stamo\.heads: 3 heads cannot share stamo\.width 128"),
    (("stamo.heads=3", "stamo.width=96"), r"stamo\.heads: 3 heads cannot share stamo\.decoder_width 128"),
    (("act.width=90", "act.heads=5"), r"act\.width: 90 is not a multiple of 4"),
])  # fmt: skip
def test_heads_that_cannot_share_a_width(options: tuple[str, ...], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load_config("tiny", None, options, sections())
    load_config("tiny", None, ("act.width=60", "act.heads=5", "vla.width=65", "vla.heads=5"), sections())


@pytest.mark.parametrize(("system", "options", "named"), [
    ("vla", ("vla.image_size=33",), r"^vla\.image_size: 33 is not a multiple of vla\.patch_size 8"),
    ("goal", ("goal.image_size=33",), r"^goal\.image_size: 33 is not a multiple of goal\.patch_size 8"),
    ("goal", ("goal.stem=conv", "goal.image_size=60", "goal.patch_size=6"), r"^goal\.patch_size: a stem"),
    ("act", ("act.image_size=33",), r"^act\.image_size: 33 is not a multiple of 8, 3 stages halve it"),
    ("stamo", ("stamo.image_size=20", "stamo.patch_size=4"), r"^stamo\.image_size: 20 is not a multiple of 8"),
])  # fmt: skip
def test_sizes_that_do_not_go_together(system: str, options: tuple[str, ...], named: str) -> None:
    config = load_config("tiny", None, options, sections())
    with pytest.raises(UsageError, match=named):
        find_system(system).build(config, Given(statistics=normalization()))


def test_a_chunk_longer_than_every_episode(tmp_path: Path) -> None:
    store = tmp_path / "store"
    make_tiny_store(store, episodes=6, frames=5, image=16, window=4, stats=True)
    config = load_config("tiny", None, (*SETTINGS, "training.max_steps=1"), sections())
    with pytest.raises(
        UsageError, match=r"model.action_seq_len: 10 actions wanted, but the longest episode of .* has "
    ):
        train("film", config, store, tmp_path / "run")
    short = load_config("tiny", None, (*SETTINGS, "training.max_steps=1", "model.action_seq_len=4"), sections())
    assert train("film", short, store, tmp_path / "run").steps == 1


def test_bins_of_a_dimension_that_never_moves() -> None:
    known = normalization()
    still = type(known)(action=_still(known.action, 3), robot_state=known.robot_state)
    config = load_config("tiny", None, ("vla.head=discrete",), sections())
    with pytest.raises(UsageError, match=r"head discrete: action dimension rx never moves .*; use head continuous"):
        find_system("vla").build(config, Given(statistics=still))


def test_a_parent_of_the_wrong_kind_or_of_another_store(tmp_path: Path) -> None:
    store, other = micro_store(tmp_path / "store"), micro_store(tmp_path / "other", seed=1)
    config = load_config("tiny", None, (*SETTINGS, "training.max_steps=1"), sections())
    film = train("film", config, store, tmp_path / "film")
    encoder = train("temporal_jepa", config, store, tmp_path / "jepa")
    flow = find_system("flow_matching")
    with pytest.raises(
        UsageError, match="flow_matching needs a state encoder of temporal_jepa, got a checkpoint of film"
    ):
        load_parent(flow, config, Path(film.checkpoint), Store.open(store))
    with pytest.raises(StaleKey, match=r"was trained on the store with content .*; train temporal_jepa again"):
        load_parent(flow, config, Path(encoder.checkpoint), Store.open(other))


def _still(known, dim: int):  # type: ignore[no-untyped-def]
    made = statistics(7, 0.3)
    low, high = list(made.q01), list(made.q99)
    high[dim] = low[dim]
    return type(known)(made.mean, made.std, made.min, made.max, tuple(low), tuple(high), made.count)
