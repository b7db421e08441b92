"""Fingerprints follow what ingest reads, and nothing else; a changed demonstration costs one unit."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.ingest.unit import UnitSettings
from pipelines.sources.evidence import Told
from pipelines.sources.fingerprint import ATTRIBUTES, Stored, fingerprint_demo
from pipelines.sources.reading import CALLS
from stores.errors import SourceError
from stores.made_by import MADE_BY
from stores.manifest import Manifest, hash_object
from stores.spec import LIBERO
from tests.pipelines.make_hdf5 import demo_arrays, make_world, write_file
from tests.stores.faults import read_tree

DEMOS = ("demo_0", "demo_1", "demo_2")
FACTS = {"image_convention": "opengl", "gripper": None}
SETTINGS = UnitSettings(16, 10, "jpeg", 95, "libero", LIBERO, Told(), FACTS, {})


def fingerprint_demos(path: Path, demos: tuple[str, ...], poison: dict[str, str] | None = None) -> dict[str, str]:
    """What the child answers."""
    argument = {"path": str(path), "demos": demos, "settings": SETTINGS.to_dict(), "poison": poison or {}}
    found: dict[str, str] = CALLS["fingerprint"](argument)
    return found


def write(path: Path, compression: str | None = None) -> Path:
    write_file(path, {name: demo_arrays(make_world(n, steps=12, side=8)) for n, name in enumerate(DEMOS)})
    if compression is not None:
        with h5py.File(path, "r+") as file:
            for demo in file["data"].values():
                for key in ("obs/agentview_rgb", "actions"):
                    values = demo[key][()]
                    del demo[key]
                    demo.create_dataset(key, data=values, chunks=(4, *values.shape[1:]), compression=compression)
    return path


def set_value(key: str, index: tuple[int, ...], value: float) -> Callable[[h5py.Group], None]:
    def edit(demo: h5py.Group) -> None:
        demo[key][index] = value

    return edit


def set_attribute(name: str, value: object) -> Callable[[h5py.Group], None]:
    def edit(demo: h5py.Group) -> None:
        demo.attrs[name] = value

    return edit


def retype(demo: h5py.Group) -> None:
    values = demo["actions"][()].astype(np.float32)
    del demo["actions"]
    demo["actions"] = values


def link(demo: h5py.Group) -> None:
    del demo["actions"]
    demo["actions"] = h5py.ExternalLink("/etc/passwd", "/")


SEEN = {
    "one number": set_value("actions", (3, 1), 0.25),
    "one pixel": set_value("obs/eye_in_hand_rgb", (0, 0, 0, 0), 3),
    "a state": set_value("states", (1, 0), 9.0),
    "num_samples": set_attribute("num_samples", 11),
    "model_file": set_attribute("model_file", "<mujoco/>"),
    "another type": retype,
    "a link": link,
    "a missing dataset": lambda demo: demo.__delitem__("obs/gripper_states"),
}


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("case", SEEN)
def test_a_change_of_what_is_read_changes_that_demonstrations_fingerprint_alone(
    tmp_path: Path, case: str, compression: str | None
) -> None:
    path = write(tmp_path / "t_demo.hdf5", compression)
    before = fingerprint_demos(path, DEMOS)
    with h5py.File(path, "r+") as file:
        SEEN[case](file["data/demo_1"])
    after = fingerprint_demos(path, DEMOS)
    assert {name for name in DEMOS if before[name] != after[name]} == {"demo_1"}
    assert len(set(after.values())) == len(DEMOS)


def test_what_is_not_read_and_where_it_lies_do_not_matter(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.hdf5"), write(tmp_path / "b.hdf5")
    with h5py.File(second, "r+") as file:
        file["data/demo_1/rewards"] = np.ones(12)
        file["data/demo_3"] = np.zeros(1000)  # moves nothing that is there
        actions = file["data/demo_0/actions"][()]
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = actions  # elsewhere in the file
    assert fingerprint_demos(first, DEMOS) == fingerprint_demos(second, DEMOS)


def test_what_cannot_be_read_has_the_reason_and_poison_is_not_touched(tmp_path: Path) -> None:
    path = write(tmp_path / "t_demo.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
    found = fingerprint_demos(path, DEMOS, {"3": "it kills"})
    assert found["demo_1"].startswith("unreadable: ")
    assert found["demo_2"] == "unreadable: it kills"
    (tmp_path / "text.hdf5").write_text("text")
    with pytest.raises(SourceError):
        fingerprint_demos(tmp_path / "text.hdf5", DEMOS)


def test_changing_one_demonstration_makes_one_unit_again(tmp_path: Path) -> None:
    demos = {f"demo_{n}": demo_arrays(make_world(n, steps=4, side=8)) for n in range(40)}
    path = write_file(tmp_path / "source/t_demo.hdf5", demos)

    def run(out: str, **options: bool):
        return ingest(IngestConfig("toy", path.parent, tmp_path / out, language="hashed", **options))

    assert run("store").units == 3
    before = read_tree(tmp_path / "store")
    with h5py.File(path, "r+") as file:
        file["data/demo_20/actions"][1, 0] = 0.5
    assert run("store").units_reused == 2
    after = read_tree(tmp_path / "store")
    assert [name for name in before if name.startswith("shards/") and before[name] != after[name]] == [
        "shards/t_demo-001.tar"
    ]
    run("fresh")
    assert read_tree(tmp_path / "fresh") == after
    assert Manifest.load(tmp_path / "store").sources[0]["sha256"] is None
    run("store", hash_sources=True)
    source = Manifest.load(tmp_path / "store").sources[0]
    assert source["sha256"] == hash_object(path.parent, path.name).sha256
    with h5py.File(path, "r+") as file:
        file["data/demo_0/rewards"] = np.ones(4)
    again = run("store")
    assert again.units_reused == 3


def test_without_how_it_was_made_a_demonstration_has_the_fingerprint_of_before(tmp_path: Path) -> None:
    """Stores that were made before this was read go on as they are."""
    before = tuple(name for name in ATTRIBUTES if name != MADE_BY)
    path = write(tmp_path / "a.hdf5")

    def of(attributes: tuple[str, ...]) -> str:
        with h5py.File(path) as file, Stored(path) as stored:
            return fingerprint_demo(file, "demo_0", stored, attributes=attributes)

    assert of(before) == of(ATTRIBUTES)
    with h5py.File(path, "r+") as file:
        file["data/demo_0"].attrs[MADE_BY] = "by hand"
    assert of(before) != of(ATTRIBUTES)
