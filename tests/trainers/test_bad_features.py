"""Features that are not what a run is for are refused before its first step, by name, with what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines.derive.features import FeatureConfig, make_features
from statevla.encoders.features import FORMAT
from statevla.systems.system import System
from statevla.systems.table import SYSTEMS
from statevla.trainers.trainer import train
from stores.derived import BEGUN, begin, parse_seal, seal_bytes
from stores.errors import StateVLAError, StoreMissing, UsageError
from stores.sharded import ShardedSpec, write_shard
from tests.encoders.test_siglip import save_small_siglip
from tests.trainers.micro import config_of_all, micro_config, micro_store
from tests.trainers.test_features import settings

JEPA, FLOW = "temporal_jepa", "flow_matching"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bad")
    store, tower = micro_store(folder / "store"), save_small_siglip(folder / "tower")
    make_features(FeatureConfig(store, str(tower), name="half", device="cpu"))
    return store, tower


@pytest.fixture
def own(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be spoilt."""
    shutil.copytree(made[0], tmp_path / "store")
    return tmp_path / "store", made[1]


def begun(store: Path, tower: Path, run: Path) -> None:
    train(JEPA, settings(tower, "data.features=half"), store, run)


def sealed(store: Path) -> tuple[dict[str, Any], Any]:
    path = store / "features/half/manifest.json"
    return parse_seal(path.read_bytes(), str(path))


def test_of_another_encoder(made: tuple[Path, Path], tmp_path: Path) -> None:
    store, tower = made
    keys = ("model.vision=dinov2", f"model.vision_model={tower}", "model.vision_width=24", "model.patch_size=16")
    with pytest.raises(UsageError, match=r"features/half: features of siglip, but model\.vision is dinov2; set either"):
        train(JEPA, micro_config(*keys, "data.features=half"), store, tmp_path / "run")


def test_of_another_revision(own: tuple[Path, Path], tmp_path: Path) -> None:
    store, tower = own
    begun(store, tower, tmp_path / "run")
    other = save_small_siglip(tmp_path / "tower")
    weights = load_file(other / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    make_features(FeatureConfig(store, str(other), name="half", device="cpu"), replace=True)
    encoder = tmp_path / "run/checkpoints/phase1_temporal_jepa/checkpoint_latest"
    config = settings(tower, "data.features=half")
    with pytest.raises(StateVLAError, match="revision"):
        train(FLOW, config, store, tmp_path / "policy", encoder_checkpoint=encoder)
    with pytest.raises(StateVLAError, match="revision"):
        train(JEPA, config, store, tmp_path / "run", resume=True)


def test_of_an_older_format(own: tuple[Path, Path], tmp_path: Path) -> None:
    store, tower = own
    fields, objects = sealed(store)
    older = seal_bytes({**fields["made_from"], "format": FORMAT - 1}, fields["about"], objects)
    (store / "features/half/manifest.json").write_bytes(older)
    with pytest.raises(StateVLAError, match=r"made from another format than this store's; run `statevla features"):
        begun(store, tower, tmp_path / "run")


def test_half_written(own: tuple[Path, Path], tmp_path: Path) -> None:
    store, tower = own
    (store / "features/half/manifest.json").unlink()
    (store / "features/half" / BEGUN).write_text(json.dumps({}))
    with pytest.raises(StoreMissing, match=r"not finished: an interrupted writer left them; run `statevla features"):
        begun(store, tower, tmp_path / "run")


@pytest.mark.parametrize(("dtype", "width"), [("float32", 24), ("float16", 12)])
def test_of_another_dtype_or_width_than_their_seal_says(
    own: tuple[Path, Path], tmp_path: Path, dtype: str, width: int
) -> None:
    store, tower = own
    fields, _ = sealed(store)
    frames, patches = json.loads((store / "features/half/agentview/zarr.json").read_text())["shape"][:2]
    shutil.rmtree(store / "features/half")
    spec = ShardedSpec((frames, patches, width), dtype, 1, frames)
    folder = begin(store, "features", "half", fields["made_from"], dict.fromkeys(fields["about"]["cameras"], spec))
    for name in fields["about"]["cameras"]:
        write_shard(folder.root, name, spec, 0, [np.zeros(spec.shape, dtype)])
    folder.commit(fields["about"])
    with pytest.raises(StateVLAError, match=rf"expected float16 rows of \[4, 24\] as its seal says, got {dtype}"):
        begun(store, tower, tmp_path / "run")


OWN_LAYERS = [row for row in SYSTEMS if row.name not in (JEPA, FLOW)]
"""What they see pictures by is no frozen tower, but for options that say so (tests/systems/test_stamo_features.py)."""


def towered(tower: Path, *more: str) -> Any:
    keys = (
        "model.vision=siglip", f"model.vision_model={tower}", "model.vision_width=24", "model.patch_size=16",
        "training.max_steps=1", *more,
    )  # fmt: skip
    return config_of_all(*keys)


@pytest.mark.parametrize("row", SYSTEMS, ids=lambda row: row.name)
def test_features_stand_for_the_pictures_of_a_system_that_sees_by_their_tower_alone(
    made: tuple[Path, Path], tmp_path: Path, row: System
) -> None:
    store, tower = made
    config = towered(tower, "data.features=half")
    if row in OWN_LAYERS:
        with pytest.raises(UsageError, match=r"data\.features: .*(features/half of a|stamo\.features=conv does)"):
            train(row, config, store, tmp_path / "run")
        assert not list((tmp_path / "run/checkpoints").rglob("checkpoint_*"))
    else:
        begun(store, tower, tmp_path / "run")
        parent = tmp_path / "run/checkpoints/phase1_temporal_jepa/checkpoint_latest"
        encoder = parent if row.parents_of(config) else None
        assert train(row, config, store, tmp_path / "own", encoder_checkpoint=encoder).steps == 1


@pytest.mark.parametrize("row", OWN_LAYERS, ids=lambda row: row.name)
def test_a_tower_that_nothing_sees_by(made: tuple[Path, Path], tmp_path: Path, row: System) -> None:
    store, tower = made
    with pytest.raises(UsageError, match=rf"model\.vision: {row.name} sees pictures by layers of its own .* siglip;"):
        train(row, towered(tower), store, tmp_path / "run")


@pytest.mark.parametrize("target", ["state", "motions"])
def test_features_do_not_stand_for_pictures_beside_an_encoder_on_their_tower(
    made: tuple[Path, Path], tmp_path: Path, target: str
) -> None:
    store, tower = made
    begun(store, tower, tmp_path / "run")
    encoder = tmp_path / "run/checkpoints/phase1_temporal_jepa/checkpoint_latest"
    world = (f"film.world_target={target}", "film.world_horizon=2")
    with pytest.raises(UsageError, match=r"data\.features: film sees pictures by layers of its own"):
        train("film", towered(tower, *world, "data.features=half"), store, tmp_path / "a", encoder_checkpoint=encoder)
    assert train("film", towered(tower, *world), store, tmp_path / "b", encoder_checkpoint=encoder).steps == 1
