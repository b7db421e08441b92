"""A second reader, written from docs/data-format.md alone: json, pyarrow, tarfile, zarr, CRC-32C, NumPy and PIL."""

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import zarr
from PIL import Image


def sealed(path):
    """The fields of a sealed file, its seal checked."""
    fields = json.loads(path.read_bytes())
    seal = fields.pop("sha256")
    text = json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() == seal
    return fields


def read_manifest(root):
    """The manifest, its seal and every object checked."""
    manifest = sealed(root / "manifest.json")
    assert manifest["schema_version"] == 1
    assert manifest["content_hash"] == identity(manifest)
    for item in manifest["objects"]:
        content = (root / item["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (item["bytes"], item["sha256"]), item["path"]
    return manifest


def identity(manifest):
    """content_hash, of what holds data and nothing else."""
    names = ("schema_version", "suite", "obs_spec", "config", "splits", "instructions")
    data = ("shards/", "frames.zarr/", "episodes.parquet", "segments.parquet", "language.parquet")
    content = {name: manifest[name] for name in names}
    content["objects"] = [item for item in manifest["objects"] if item["path"].startswith(data)]
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def read_segment(root, row):
    """Members of one row of segments.parquet by byte range, equal to what tarfile finds by name."""
    with (root / row["shard"]).open("rb") as handle:
        handle.seek(row["offset"])
        packed = handle.read(row["size"])
    assert zlib.crc32(packed) == row["crc32"]
    members = {}
    with tarfile.open(root / row["shard"]) as tar:
        for name, start, size in zip(row["member_name"], row["member_offset"], row["member_size"], strict=True):
            members[name] = packed[start - row["offset"] :][:size]
            assert tar.extractfile(f"{row['key']}.{name}").read() == members[name]
    return members


def transitions(root):
    """Of the whole store: (episode row, step, images, state, next images or None, action, chunk, is_pad)."""
    manifest, root = read_manifest(root), Path(root)
    chunk, suffix = manifest["config"]["chunk"], {"jpeg": "jpg", "png": "png"}[manifest["config"]["codec"]]
    cameras = [camera["name"] for camera in manifest["obs_spec"]["cameras"]]
    episodes = pq.read_table(root / "episodes.parquet").to_pylist()
    for row in pq.read_table(root / "segments.parquet").to_pylist():
        members = read_segment(root, row)
        state, action, is_pad = (np.load(io.BytesIO(members[f"{k}.npy"])) for k in ("robot_state", "action", "is_pad"))
        images = [
            [np.asarray(Image.open(io.BytesIO(members[f"{camera}.{t:02d}.{suffix}"]))) for camera in cameras]
            for t in range(row["observations"])
        ]
        for i in range(row["steps"]):
            after = images[i + 1] if i + 1 < row["observations"] else None
            window = slice(i, i + chunk)
            step = row["first_step"] + i
            yield episodes[row["episode"]], step, images[i], state[i], after, action[i], action[window], is_pad[window]


def frames(root):
    """frames.zarr as plain arrays."""
    return {name: array[...] for name, array in zarr.open_group(Path(root) / "frames.zarr", mode="r").arrays()}


def derived(root, kind, name):
    """A folder computed from the store: its seal's fields and its arrays, every object, chunk and row checked."""
    folder = Path(root) / kind / name
    seal = sealed(folder / "manifest.json")
    made_from = json.dumps(seal["made_from"], sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert seal["key"] == hashlib.sha256(made_from.encode()).hexdigest()[:16]
    arrays = {}
    for item in seal["objects"]:
        content = (folder / item["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (item["bytes"], item["sha256"]), item["path"]
        array, _, rest = item["path"].partition("/")
        if rest == "zarr.json":
            meta = json.loads(content)
            values = b"".join(chunks_of(folder / array, meta))
            dtype = np.dtype(meta["data_type"]).newbyteorder("<")
            arrays[array] = np.frombuffer(values, dtype).reshape(-1, *meta["shape"][1:])[: meta["shape"][0]]
    return seal, arrays


def chunks_of(array, meta):
    """Payloads of an array's chunks in the order of its rows, each compared with its CRC-32C."""
    rows = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
    count, ones = -(-meta["shape"][0] // rows), "/0" * (len(meta["shape"]) - 1)
    sharding = next((codec for codec in meta["codecs"] if codec["name"] == "sharding_indexed"), None)
    for m in range(count):
        content = (array / f"c/{m}{ones}").read_bytes()
        if sharding is None:
            yield checked(content)
            continue
        assert sharding["configuration"]["index_location"] == "end"
        chunks = rows // sharding["configuration"]["chunk_shape"][0]
        index = np.frombuffer(checked(content[-(16 * chunks + 4) :]), "<u8").reshape(chunks, 2)
        held = -(-min(rows, meta["shape"][0] - m * rows) * chunks // rows)
        assert (index[held:] == 2**64 - 1).all()
        for offset, size in index[:held].tolist():
            yield checked(content[offset : offset + size])


def checked(content):
    """What stands before its CRC-32C."""
    assert google_crc32c.value(content[:-4]) == int.from_bytes(content[-4:], "little")
    return content[:-4]
