"""A new view of observations is one file and one row: this file is one, and the whole way works with it."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from statevla.config import Config
from statevla.config.load import load_config
from statevla.config.schema import SystemOptions
from statevla.data import views
from statevla.data.batch import Batch
from statevla.data.needs import Needs
from statevla.data.views import Held, Ints, Rows, take
from statevla.models.losses import LossParts
from statevla.systems import table
from statevla.systems.system import Given, Noise, Objective, System, Terms
from statevla.trainers.trainer import train
from stores.arrays import ArraySpec, write_region
from stores.derived import Derived, begin
from stores.disk.lock import lock
from stores.errors import StaleKey, StoreMissing, UsageError
from stores.reader import Store
from tests.trainers.micro import SETTINGS, micro_store


@dataclass(frozen=True)
class Touch:
    """What fingers feel, rows [2]."""

    rows: Rows

    def observe(self, rows: Ints, pin: bool, pool: Executor) -> dict[str, Tensor]:
        return {"touch": take(self.rows, rows, pin, pool)}


def open_touch(found: Derived, cache_bytes: float) -> Touch:
    array = found.array("touch")
    return Touch(Held(array.read(0, array.spec.shape[0])))


class Feel(Objective):
    """Regresses what the fingers feel after the action from the robot's state before it."""

    def __init__(self, views: tuple[str, ...], goal: str = "none") -> None:
        super().__init__()
        self.needs = Needs(offsets=(0, 1), views=views, goal=goal)
        self.layer = nn.Linear(9, 2)
        self.seen: list[Batch] = []

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        self.seen.append(batch)
        return {"told": self.layer(batch.obs.robot_state), "wanted": batch.next_obs.extras["touch"]}

    def loss(self, terms: Terms) -> LossParts:
        total = (terms["told"] - terms["wanted"]).square().mean()
        return LossParts(total, {"mse": total.detach()}, torch.tensor(float(len(terms["told"]))))


MADE: list[Feel] = []


def build(config: Config, given: Given) -> Feel:
    MADE.append(Feel(("pixels", "touch")))
    return MADE[-1]


FEEL = System("feel", "feel", "policy", "a toy", build, SystemOptions, "feel")


@pytest.fixture
def feel(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    monkeypatch.setitem(views.VIEWS, "touch", open_touch)
    table.SYSTEMS.append(FEEL)
    yield FEEL
    table.SYSTEMS.remove(FEEL)
    MADE.clear()


def touched(root: Path, content_hash: str | None = None) -> Path:
    """A store with features/touch: of every frame its number, and minus that."""
    store = Store.open(root)
    frames = len(store.frames["robot_state"])
    spec = ArraySpec((frames, 2), "float32", 16)
    with lock(root, "test"):
        folder = begin(root, "features", "touch", {"content_hash": content_hash or store.content_hash}, {"touch": spec})
        number = np.arange(frames, dtype=np.float32)
        write_region(folder.root, "touch", spec, 0, np.stack([number, -number], axis=1))
        folder.commit({})
    return root


def settings(*more: str) -> Config:
    return load_config("tiny", None, (*SETTINGS, "training.max_steps=4", *more), table.sections())


@pytest.mark.parametrize("cache", ["memory", "decoded"])
def test_it_comes_beside_pictures_with_every_row(feel: System, tmp_path: Path, cache: str) -> None:
    store = touched(micro_store(tmp_path / "store"))
    summary = train("feel", settings(f"data.cache={cache}"), store, tmp_path / "run")
    assert summary.steps == 4
    first = Store.open(store).episode_columns["first_frame"]
    assert len(MADE[0].seen) >= 4
    for batch in MADE[0].seen:
        at = torch.as_tensor([int(first[episode]) for episode in batch.episode.tolist()]) + batch.frame
        torch.testing.assert_close(batch.obs.extras["touch"], torch.stack([at, -at], 1).float())
        after = at + batch.has_next
        torch.testing.assert_close(batch.next_obs.extras["touch"], torch.stack([after, -after], 1).float())
        assert len(batch.obs.images) == 2


def test_a_folder_that_is_absent_or_of_another_store_is_refused(feel: System, tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    with pytest.raises(StoreMissing, match=r"features/touch/manifest.json: features are not there yet"):
        train("feel", settings(), store, tmp_path / "run")
    with pytest.raises(StaleKey, match=r"features/touch/manifest.json: made from another content_hash"):
        train("feel", settings(), touched(store, "another"), tmp_path / "other")


def test_goals_and_unknown_views_are_refused(feel: System) -> None:
    with pytest.raises(UsageError, match="goals are of pixels alone, and cannot come with views touch"):
        Feel(("pixels", "touch"), goal="final")
    with pytest.raises(UsageError, match=r"got .*'smell'"):
        Needs(views=("pixels", "smell"))
