"""Features of a frozen tower: what it gives for the decoded pictures, by frame; resumable, previewed, never stale."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModel, Dinov2Config, Dinov2Model

from pipelines.derive import features
from pipelines.derive.features import FeatureConfig, make_features
from statevla.config import ModelConfig
from statevla.data.frames import make_table
from statevla.data.walk import walk_pictures
from statevla.encoders import features as kept
from statevla.encoders.features import kept_towers, open_kept, quantize, vectors
from statevla.encoders.siglip import load_siglip
from statevla.models.tokenizer import pool_patches
from stores.disk import room
from stores.disk.lock import lock
from stores.errors import StaleKey, StateVLAError, StoreCorrupt, StoreMissing, UsageError
from stores.progress import ProgressEvent
from stores.reader import Store
from stores.verify import verify_store
from tests.encoders.test_siglip import save_small_siglip
from tests.stores.faults import read_tree
from tests.stores.make_store import make_tiny_store

SMALL = ModelConfig(vision="siglip", vision_width=24, image_size=32)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_siglip(tmp_path_factory.mktemp("towers") / "small")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """100 and some frames; shards of 32 rows, chunks of 16."""
    monkeypatch.setattr(features, "SHARD_ROWS", 32)
    monkeypatch.setattr(features, "CHUNK_BYTES", 16 * 4 * 24 * 2)
    make_tiny_store(tmp_path / "store", episodes=4, frames=30, image=24, window=8)
    return tmp_path / "store"


def save_small_dinov2(folder: Path) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}
    Dinov2Model(Dinov2Config(**shape)).save_pretrained(folder)
    settings = {
        "size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True, "resample": 3,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def make(store: Path, tower: Path, replace: bool = False, **options: Any) -> dict[str, Any]:
    config = FeatureConfig(store, str(tower), name="kept", batch=8, device="cpu", **options)
    return make_features(config, replace=replace)


def expected(store: Path, tower: Path, camera: int, pool: int = 1) -> torch.Tensor:
    """Of the pictures as the store's reader gives them, episode by episode."""
    opened, backbone = Store.open(store), load_siglip(str(tower))
    columns, rows = opened.segment_columns, {}
    for i in range(len(opened)):
        first = int(opened.episode_columns["first_frame"][columns["episode"][i]] + columns["first_step"][i])
        for t, picture in enumerate(opened.decode_segment(i)[camera]):
            rows[first + t] = picture
    pictures = torch.from_numpy(np.stack([rows[n] for n in range(opened.manifest.counts["frames"])]))
    return pool_patches(backbone.patch_features(pictures), pool)


@pytest.mark.parametrize(("dtype", "pool"), [("float16", 1), ("int8", 1), ("float16", 2)])
def test_rows_are_the_towers_features_of_each_frame(store: Path, tower: Path, dtype: str, pool: int) -> None:
    summary = make(store, tower, dtype=dtype, pool=pool)
    assert (summary["patches"], summary["width"], summary["computed"]) == (4 // pool**2, 24, 4)
    assert verify_store(store) == []
    found = zarr.open_group(store / summary["folder"], mode="r")  # Zarr's own reader agrees
    (kept,) = kept_towers(Store.open(store))
    means = torch.from_numpy(vectors(kept, summary["frames"])["mean"]).chunk(2, dim=1)
    for camera, name in enumerate(("agentview", "eye_in_hand")):
        values = torch.from_numpy(np.asarray(found[name]).astype(np.float32))
        wanted = expected(store, tower, camera, pool)
        if dtype == "int8":
            scale = torch.from_numpy(np.asarray(found[f"{name}_scale"]).astype(np.float32)).unsqueeze(-1)
            assert ((values * scale - wanted).abs() <= scale * 0.51).all()
        else:
            torch.testing.assert_close(values, wanted, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(means[camera], wanted.mean(dim=1), rtol=1e-2, atol=1e-2)
    shards = [path for path in (store / summary["folder"]).glob("*/c/**/*") if path.is_file()]
    assert summary["bytes"] == sum(path.stat().st_size for path in shards)
    assert make(store, tower, dtype=dtype, pool=pool)["computed"] == 0


def test_an_interrupted_run_goes_on_by_unit_to_the_same_bytes(store: Path, tower: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store, tmp_path / "other"))
    make(other, tower)

    def stop(event: ProgressEvent) -> None:
        assert event.total == Store.open(store).manifest.counts["frames"]
        if event.done >= 64:
            raise KeyboardInterrupt

    config = FeatureConfig(store, str(tower), name="kept", batch=8, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        make_features(config, progress=stop)
    with pytest.raises(StoreMissing, match="not finished: an interrupted writer left them"):
        open_kept(Store.open(store), "kept", SMALL)
    assert all("not finished" in problem.problem for problem in verify_store(store))
    hurt = store / "features/kept/eye_in_hand/c/1/0/0"  # what it takes over is checked, and made anew where damaged
    data = bytearray(hurt.read_bytes())
    data[77] ^= 1
    hurt.write_bytes(data)
    assert make_features(config)["computed"] == 3
    assert read_tree(store / "features") == read_tree(other / "features")


def test_a_store_that_changes_between_opening_and_lock_is_refused(
    store: Path, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def lock_after_an_ingest(*arguments: Any, **options: Any) -> Iterator[None]:
        shutil.rmtree(store)
        make_tiny_store(store, episodes=5, frames=30, image=24, window=8, seed=3)
        yield

    monkeypatch.setattr(features, "lock", lock_after_an_ingest)
    with pytest.raises(StaleKey, match="another ingest has changed it meanwhile; run the same command again"):
        make(store, tower)


def test_another_writer_is_waited_for_and_its_features_are_taken(store: Path, tower: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store, tmp_path / "other"))
    make(other, tower)
    said = []
    with contextlib.ExitStack() as writer:
        writer.enter_context(lock(store, "another one"))

        def finish(event: ProgressEvent) -> None:
            said.append(event.message)
            shutil.copytree(other / "features", store / "features")
            writer.close()

        config = FeatureConfig(store, str(tower), name="kept", batch=8, device="cpu")
        assert make_features(config, progress=finish)["computed"] == 0
    assert len(said) == 1
    assert "is being written by another one" in said[0]


def test_what_fails_at_once_leaves_nothing(store: Path, tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as large:
        large.setattr(features, "pool_patches", lambda tokens, pool: tokens * 1e30)
        with pytest.raises(StateVLAError, match="not finite, or too large for float16"):
            make(store, tower)
    assert verify_store(store) == []
    assert make(store, tower)["computed"] == 4


def test_frames_past_the_index_are_an_error(store: Path) -> None:
    opened = Store.open(store)
    frames = opened.manifest.counts["frames"]
    pieces = walk_pictures(opened, make_table(opened, 1), frames - 4, frames + 3, 5, 1)
    with pytest.raises(StoreCorrupt, match=f"frames {frames} to {frames} are in no segment"):
        next(pieces)


def test_the_size_is_said_before_and_a_full_disk_refuses(
    store: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FeatureConfig(store, str(tower), name="kept", device="cpu")
    preview = make_features(config, dry_run=True)
    assert not (store / "features").exists()
    usage = room.shutil.disk_usage(store)
    with monkeypatch.context() as full:
        full.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=preview["bytes"] - 1))
        with pytest.raises(StateVLAError, match=r"these features need .* GB are free; make room"):
            make_features(config)
        assert not (store / "features").exists()
        assert verify_store(store) == []
    make(store, tower, dtype="int8")
    small = read_tree(store / "features")
    with monkeypatch.context() as full:
        full.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=10))
        with pytest.raises(StateVLAError, match="these features need"):
            make_features(config, replace=True)
        assert read_tree(store / "features") == small  # not removed for what has no room
    made = make_features(config, replace=True)
    assert made["bytes"] == preview["bytes"]
    assert made["train_with"] == "--set data.features=kept"


def test_what_a_model_cannot_take_is_refused(store: Path, tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Store.open(store)
    with pytest.raises(StoreMissing, match=r"features/kept/manifest.json: features are not there yet; run `statevla"):
        open_kept(opened, "kept", SMALL)
    make(store, tower)
    assert open_kept(opened, "kept", SMALL).made_from["dtype"] == "float16"
    for change, match in (
        ({"vision": "dinov2"}, "features of siglip, but model.vision is dinov2"),
        ({"vision_width": 32}, "model.vision_width: 32 in the configuration, 24 in the features"),
        ({"vision_pool": 2}, "model.vision_pool: 2 in the configuration, 1 in the features"),
        ({"image_size": 64}, "patches .*: 16 in the configuration, 4 in the features"),
    ):
        with pytest.raises(UsageError, match=match):
            open_kept(opened, "kept", ModelConfig(**{**vars(SMALL), **change}))
    monkeypatch.setattr(kept, "FORMAT", kept.FORMAT + 1)
    with pytest.raises(StaleKey, match="made from another format"):
        open_kept(opened, "kept", SMALL)


def test_those_of_another_way_are_replaced_when_told_only(store: Path, tower: Path, tmp_path: Path) -> None:
    """They may have taken a day, and a GPU that is not here now; what no reader can take goes without a word."""
    first = make(store, tower)
    other = Path(shutil.copytree(tower, tmp_path / "tower"))
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.1, 0.1, 0.1]}))
    kept_ones = read_tree(store / "features")
    for another, options in (("transform", {}), ("dtype, transform", {"dtype": "int8"})):
        with pytest.raises(
            UsageError, match=rf"features/kept are there, made from another {another}; give .*--replace"
        ):
            make(store, other, **options)
    assert read_tree(store / "features") == kept_ones
    assert make(store, other, replace=True)["computed"] == 4  # the same weights, but other pixels
    assert make(store, tower, replace=True)["revision"] == first["revision"]
    make_tiny_store(tmp_path / "later", episodes=5, frames=30, image=24, window=8, seed=3)
    shutil.move(store / "features", tmp_path / "later/features")
    assert make(tmp_path / "later", other)["computed"] == 5


def test_an_interrupted_part_of_another_way_is_not_thrown_away_either(store: Path, tower: Path, tmp_path: Path) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.done >= 64:
            raise KeyboardInterrupt

    config = FeatureConfig(store, str(tower), name="kept", batch=8, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        make_features(config, progress=stop)
    with pytest.raises(UsageError, match="features/kept are there, made from another dtype"):
        make(store, tower, dtype="int8")
    assert make_features(config)["computed"] == 2


def test_a_damaged_row_is_named(store: Path, tower: Path) -> None:
    make(store, tower)
    shard = store / "features/kept/agentview/c/1/0/0"
    data = bytearray(shard.read_bytes())
    data[50] ^= 1
    shard.write_bytes(data)
    array = open_kept(Store.open(store), "kept", SMALL).sharded("agentview")
    array.read(0, 8)
    with pytest.raises(StoreCorrupt, match="agentview/c/1/0/0: chunk 0"):
        array.read(33, 34)
    assert [problem.object for problem in verify_store(store)] == ["features/kept/agentview/c/1/0/0"]


def test_dinov2s_class_token_is_kept_beside_its_patches(store: Path, tmp_path: Path) -> None:
    save_small_dinov2(tmp_path / "dino")
    summary = make(store, tmp_path / "dino")
    assert (summary["encoder"], summary["patches"]) == ("dinov2", 4)
    frames = torch.from_numpy(Store.open(store).decode_segment(0)[0][:2])
    from statevla.encoders.dinov2 import load_dinov2
    from statevla.encoders.preprocessing import resize

    backbone = load_dinov2(str(tmp_path / "dino"))
    pixels = resize(frames, backbone.preprocessing) / 127.5 - 1
    with torch.no_grad():
        wanted = AutoModel.from_pretrained(tmp_path / "dino").eval()(pixel_values=pixels).last_hidden_state
    for name, tokens in (("agentview", wanted[:, 1:]), ("agentview_class", wanted[:, 0])):
        stored = zarr.open_group(store / summary["folder"], mode="r")[name][:2].astype(np.float32)
        torch.testing.assert_close(torch.from_numpy(stored), tokens, rtol=2e-3, atol=2e-3)
    assert verify_store(store) == []
    (found,) = kept_towers(Store.open(store))
    each = vectors(found, summary["frames"])
    assert {name: values.shape for name, values in each.items()} == {
        "mean": (summary["frames"], 48), "class": (summary["frames"], 48)
    }  # fmt: skip
    torch.testing.assert_close(torch.from_numpy(each["mean"][:2, :24]), wanted[:, 1:].mean(1), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(torch.from_numpy(each["class"][:2, :24]), wanted[:, 0], rtol=2e-3, atol=2e-3)


def test_encoders_that_are_none(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="expected siglip, dinov2, or a model's name or folder"):
        make_features(FeatureConfig(store, "no/such-model"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UsageError, match="a model of type bert; expected one of siglip, dinov2"):
        make_features(FeatureConfig(store, str(tmp_path / "bert")))
    with pytest.raises(UsageError, match="run this on a local copy"):
        make_features(FeatureConfig("s3://bucket/store", "siglip"))


def test_int8_keeps_a_zero_patch() -> None:
    values, scale = quantize(torch.tensor([[[0.0, 0.0], [1.0, -2.0]]]))
    assert values.tolist() == [[[0, 0], [63, -127]]] or values.tolist() == [[[0, 0], [64, -127]]]
    assert scale[0, 0] == 0


def test_without_a_hub_a_folder_is_asked_for_by_the_commands_own_flag(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(model: str) -> bool:
        raise OSError("the hub does not answer")

    monkeypatch.setattr("statevla.encoders.tower.require_weights", unreachable)
    with pytest.raises(UsageError, match=r"the hub does not answer.*--encoder FOLDER of `statevla features`"):
        make_features(FeatureConfig(str(store), "siglip", device="cpu"))
