"""How demonstrations were made: from a file's attribute into the manifest, and not said where nobody said it."""

import json
from pathlib import Path

import h5py

from pipelines.ingest.merge import unit_facts
from stores import made_by
from stores.manifest import Manifest
from stores.summary import inspect_store
from tests.pipelines.test_evidence import grasping, run, write_tasks


def test_how_demonstrations_were_made_is_in_the_manifest_and_moves_no_fingerprint(tmp_path: Path) -> None:
    source = write_tasks(tmp_path / "in", [[grasping(n) for n in range(3)], [grasping(9)]])
    run(source, tmp_path / "plain")
    plain = [entry["fingerprint"] for entry in Manifest.load(tmp_path / "plain").sources]
    with h5py.File(source / "move_a_demo.hdf5", "r+") as file:
        file["data/demo_0"].attrs["made_by"] = "scripted expert"
        file["data/demo_2"].attrs["made_by"] = "scripted expert, noise 0.3\x1b[2J"
    run(source, tmp_path / "out")
    entries = Manifest.load(tmp_path / "out").sources
    assert entries[0]["made_by"] == {"scripted expert": 1, "scripted expert, noise 0.3\\x1b[2J": 1}
    assert entries[1]["made_by"] == {}
    assert entries[0]["fingerprint"] != plain[0]
    assert entries[1]["fingerprint"] == plain[1]
    found = made_by.made_by(entries)
    assert found == {"": 2, "scripted expert": 1, "scripted expert, noise 0.3\\x1b[2J": 1}
    assert inspect_store(tmp_path / "out")["made_by"] == {text or "not said": count for text, count in found.items()}
    assert made_by.told(found) == (
        "4 demonstrations: 2 that do not say how they were made; 1 scripted expert; "
        "1 scripted expert, noise 0.3\\x1b[2J"
    )


def test_a_store_from_before_does_not_say_how_demonstrations_were_made(tmp_path: Path) -> None:
    source = write_tasks(tmp_path / "in", [[grasping(n) for n in range(3)]])
    store = tmp_path / "out"
    run(source, store)
    records = [json.loads(path.read_bytes()) for path in (store / "units").iterdir()]
    for record in records:  # as earlier versions wrote them
        for row in record["episodes"]:
            del row["made_by"]
        assert unit_facts(record, "move_a_demo.hdf5").made_by == ("",) * len(record["episodes"])
    assert made_by.told(made_by.made_by(Manifest.load(store).sources)) is None
    assert made_by.told(made_by.made_by([{"episodes": 3}])) is None
