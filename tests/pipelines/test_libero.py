"""One demonstration to a canonical episode, and what is refused with which reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.sources.evidence import Told
from pipelines.sources.hdf5 import open_hdf5, reporting
from pipelines.sources.libero import LIBERO_SOURCE
from pipelines.sources.libero_demo import read_demo
from pipelines.sources.libero_header import inspect_file
from pipelines.sources.source import Episode
from stores.errors import SourceError
from stores.spec import LIBERO
from tests.pipelines.make_hdf5 import MODEL_XML, World, demo_arrays, make_world, write_file


def read(path: Path, alignment: str = "detect") -> tuple[Episode, np.ndarray]:
    header = inspect_file(path)
    facts = LIBERO_SOURCE.weigh({header.name: header}, Told()).facts[header.name]
    with open_hdf5(path) as file:
        episode = read_demo(file, "demo_0", facts["image_convention"], alignment)
        images = {name: episode.images(name, 0, len(episode.robot_state), None) for name in LIBERO.camera_names}
        return episode, np.stack([images["agentview"], images["eye_in_hand"]], axis=1)


def write(path: Path, world: World, alignment: str = "after", **options: Any) -> Path:
    return write_file(path / "pick_up_the_mug_demo.hdf5", {"demo_0": demo_arrays(world, alignment)}, **options)


def test_after_file_gives_the_action_that_follows_each_observation(tmp_path: Path) -> None:
    world = make_world(0, steps=30)
    episode, images = read(write(tmp_path, world, "after"))
    assert episode.alignment == "after"
    assert episode.robot_state.shape == (30, 9)
    np.testing.assert_array_equal(episode.action, world.actions[1:].astype(np.float32))
    np.testing.assert_allclose(episode.robot_state[:, :7], world.joints[1:] + 1e-4, atol=1e-6)
    np.testing.assert_allclose(episode.robot_state[:, 7:], world.fingers[1:], atol=1e-7)
    np.testing.assert_array_equal(images[:, 0], world.agentview[1:, ::-1])


def test_before_file_keeps_rows_as_they_are(tmp_path: Path) -> None:
    world = make_world(0, steps=30)
    episode, images = read(write(tmp_path, world, "before"))
    assert episode.alignment == "before"
    np.testing.assert_array_equal(episode.action, world.actions.astype(np.float32))
    np.testing.assert_array_equal(images[:, 1], world.eye_in_hand[:30, ::-1])


def test_both_alignments_give_the_same_transitions(tmp_path: Path) -> None:
    """Of one and the same run: o_1 ... o_{T-1} with the actions executed from them and what came next."""
    world = make_world(5, steps=25)
    after, after_images = read(write(tmp_path / "after", world, "after"))
    before, before_images = read(write(tmp_path / "before", world, "before"))
    # Moments 1 ... 24 are in both files; the actions between them are 1 ... 23.
    np.testing.assert_array_equal(after.robot_state[:24], before.robot_state[1:])
    np.testing.assert_array_equal(after_images[:24], before_images[1:])
    np.testing.assert_array_equal(after.action[:23], before.action[1:24])


def test_images_come_out_upright(tmp_path: Path) -> None:
    """The scene is dark at the bottom: OpenGL stores the bottom row first, OpenCV last."""
    world = make_world(0)
    for convention in ("opengl", "opencv"):
        _, images = read(write(tmp_path / convention, world, convention=convention))
        top, bottom = images[0, 0, 0, :, 0].mean(), images[0, 0, -1, :, 0].mean()
        assert (top > bottom) == (convention == "opengl")


def test_missing_convention_is_opengl_and_said_so(tmp_path: Path) -> None:
    header = inspect_file(write(tmp_path, make_world(), convention=None))
    assert header.evidence["convention"] is None
    verdict = LIBERO_SOURCE.weigh({header.name: header}, Told())
    assert verdict.facts[header.name]["image_convention"] == "opengl"
    notes = verdict.notes
    assert any("no macros_image_convention" in text and "--image-convention" in text for _, text in notes)


def test_instruction_from_problem_info_else_from_the_name_and_reported(tmp_path: Path) -> None:
    path = write(tmp_path, make_world(), instruction="pick the mug")
    header = inspect_file(path)
    assert (header.episodes["demo_0"].instruction, header.notes) == ("pick the mug", ())
    named = write_file(
        tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5", {"demo_0": demo_arrays(make_world())}, instruction=None
    )
    header = inspect_file(named)
    assert header.episodes["demo_0"].instruction == "turn on the stove"
    assert any("file's name" in note for note in header.notes)


def test_num_samples_may_be_absent(tmp_path: Path) -> None:
    episode, _ = read(write(tmp_path, make_world(), counted=False))
    assert len(episode.action) == 39


def change(path: Path, edit: Callable[[h5py.Group], None]) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file["data/demo_0"])
    return path


def replace(key: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.Group], None]:
    def edit(demo: h5py.Group) -> None:
        values = make(demo[key][()])
        del demo[key]
        demo[key] = values

    return edit


def put(index: tuple[int, int], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return edit


def delete(key: str) -> Callable[[h5py.Group], None]:
    def edit(demo: h5py.Group) -> None:
        del demo[key]

    return edit


def soft_link(demo: h5py.Group) -> None:
    del demo["actions"]
    demo["actions"] = h5py.SoftLink("/data/demo_0/states")


def external_link(demo: h5py.Group) -> None:
    del demo["actions"]
    demo["actions"] = h5py.ExternalLink("/etc/passwd", "/")


def external_storage(demo: h5py.Group) -> None:
    del demo["actions"]
    demo.create_dataset("actions", (40, 7), "f8", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def unwritten(demo: h5py.Group) -> None:
    shape = demo["obs/agentview_rgb"].shape
    del demo["obs/agentview_rgb"]
    images = demo.create_dataset("obs/agentview_rgb", shape, "u1", chunks=(8, *shape[1:]))
    images[:8] = 7


def enormous(demo: h5py.Group) -> None:
    del demo["obs/agentview_rgb"]
    demo.create_dataset("obs/agentview_rgb", (40_000_000, 1024, 1024, 3), "u1", chunks=(1, 1024, 1024, 3))


BAD: dict[str, tuple[Callable[[h5py.Group], None], str]] = {
    "missing key": (delete("obs/joint_states"), r"'obs/joint_states' is missing"),
    "missing camera": (delete("obs/eye_in_hand_rgb"), r"'obs/eye_in_hand_rgb' is missing"),
    "nan action": (replace("actions", put((3, 2), np.nan)), r"'actions'.*NaN.*row 3"),
    "infinite joint": (replace("obs/joint_states", put((5, 0), np.inf)), r"'obs/joint_states'.*row 5"),
    "action out of range": (replace("actions", put((4, 1), 1.5)), r"\[-1, 1\].*got 1.5 at row 4"),
    "float images": (replace("obs/agentview_rgb", lambda a: a.astype(np.float32)), r"expected uint8.*got float32"),
    "gray images": (replace("obs/agentview_rgb", lambda a: a[..., 0]), r"expected uint8 \[\*, \*, \*, 3\]"),
    "cameras differ": (replace("obs/eye_in_hand_rgb", lambda a: a[:, :-1]), r"cameras differ in shape"),
    "lengths differ": (replace("actions", lambda a: a[:-1]), r"expected float \[40, 7\], got float64 \[39, 7\]"),
    "text actions": (replace("actions", lambda a: a.astype("S8")), r"'actions': expected float"),
    "soft link": (soft_link, r"a link to elsewhere"),
    "external link": (external_link, r"a link to elsewhere"),
    "external storage": (external_storage, r"lies in other files"),
    "unwritten chunks": (unwritten, r"5 chunks declared, 1 written"),
    "enormous": (enormous, r"declares 125,829,120,000,000 bytes"),
    "still arm": (replace("states", lambda a: a * 0), r"cannot tell.*--alignment after"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_demo_is_refused_with_file_key_and_reason(tmp_path: Path, case: str) -> None:
    edit, reason = BAD[case]
    path = change(write(tmp_path, make_world()), edit)
    with pytest.raises(SourceError, match=reason) as caught, open_hdf5(path) as file:
        read_demo(file, "demo_0", "opengl")
    assert str(caught.value).startswith("pick_up_the_mug_demo.hdf5/demo_0: ")


def test_demo_shorter_than_two_frames_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, make_world(steps=1))
    with pytest.raises(SourceError, match="at least 2 frames, got 1"), open_hdf5(path) as file:
        read_demo(file, "demo_0", "opengl")


def test_num_samples_that_lies_is_refused(tmp_path: Path) -> None:
    def edit(demo: h5py.Group) -> None:
        demo.attrs["num_samples"] = 41

    path = change(write(tmp_path, make_world()), edit)
    with pytest.raises(SourceError, match="num_samples declares 41 rows, images have 40"), open_hdf5(path) as file:
        read_demo(file, "demo_0", "opengl")


def test_undetectable_alignment_needs_to_be_told(tmp_path: Path) -> None:
    path = change(write(tmp_path, make_world(), model=None), replace("states", lambda a: a * 0))
    with pytest.raises(SourceError, match=r"cannot tell.*--alignment"):
        read(path)
    assert len(read(path, "after")[0].action) == 39
    assert len(read(path, "before")[0].action) == 40


@pytest.mark.parametrize("alignment", ["after", "before"])
def test_alignment_is_seen_without_a_model(tmp_path: Path, alignment: str) -> None:
    world = make_world(2)
    assert read(write(tmp_path, world, alignment, model=None))[0].alignment == alignment


@pytest.mark.parametrize("model", [MODEL_XML, None])
@pytest.mark.parametrize("alignment", ["after", "before"])
def test_telling_against_the_evidence_is_refused(tmp_path: Path, alignment: str, model: str | None) -> None:
    wrong = {"after": "before", "before": "after"}[alignment]
    numbers = r"differ by [\d.e-]+ rad read as 'before', [\d.e-]+ rad read as 'after'"
    with pytest.raises(SourceError, match=rf"told '{wrong}'.*shows '{alignment}'.*{numbers}"):
        read(write(tmp_path, make_world(), alignment, model=model), wrong)


def test_no_hdf5_and_truncated_hdf5(tmp_path: Path) -> None:
    text = tmp_path / "text.hdf5"
    text.write_text("not HDF5")
    with pytest.raises(SourceError, match=r"text\.hdf5: expected an HDF5 file"):
        inspect_file(text)
    whole = write(tmp_path, make_world())
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"cut\.hdf5: .*truncated"):
        inspect_file(cut)


def test_compressed_chunk_that_was_altered(tmp_path: Path) -> None:
    def compress(demo: h5py.Group) -> None:
        images = demo["obs/agentview_rgb"][()]
        del demo["obs/agentview_rgb"]
        demo.create_dataset("obs/agentview_rgb", data=images, chunks=(16, *images.shape[1:]), compression="gzip")

    path = change(write(tmp_path, make_world()), compress)
    with h5py.File(path) as file:
        place = file["data/demo_0/obs/agentview_rgb"].id.get_chunk_info(1)
    data = bytearray(path.read_bytes())
    data[place.byte_offset + place.size // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(SourceError, match="not what gzip wrote"):
        read(path)


def test_fewer_demos_than_declared_is_reported(tmp_path: Path) -> None:
    header = inspect_file(write(tmp_path, make_world(), declared=3))
    assert tuple(header.episodes) == ("demo_0",)
    assert header.refused == ()
    assert "declares 3, the file holds 1" in header.notes[0]


def test_names_and_texts_that_are_not_utf8_are_refused_where_they_are(tmp_path: Path) -> None:
    demos = {name: demo_arrays(make_world(0, steps=30)) for name in ("demo_0", "demo_1")}
    path = write_file(tmp_path / "x_demo.hdf5", demos)
    with h5py.File(path, "r+") as file:
        data = file["data"]
        data.id.links.move(b"demo_1", data.id, b"demo_\xff")
    header = inspect_file(path)
    assert tuple(header.episodes) == ("demo_0",)
    assert header.refused == (("demo_\\xff", "x_demo.hdf5/demo_\\xff: expected a name in UTF-8"),)
    for half in ("\ud83d", "pick \udcff"):
        with pytest.raises(SourceError, match="language_instruction: expected UTF-8 text"):
            inspect_file(write_file(tmp_path / "y_demo.hdf5", demos, instruction=half))


def test_a_reason_can_be_written() -> None:
    for error in (ValueError("odd \udcff"), SourceError("odd \udcff")):
        with pytest.raises(SourceError, match=r"x/demo_0: .*odd \\udcff"), reporting("x/demo_0"):
            raise error


def test_model_with_entities_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE m [<!ENTITY a "x">]>' + MODEL_XML
    with pytest.raises(SourceError, match="model_file"):
        read(write(tmp_path, make_world(), model=bomb))


@pytest.mark.parametrize("move", [64, 1 << 40], ids=["onto its neighbour", "out of the file"])
def test_a_damaged_address_is_refused(tmp_path: Path, move: int) -> None:
    """The images' address in the file, moved onto their neighbour or away."""
    path = write(tmp_path, make_world())
    with h5py.File(path) as file:
        data = file["data/demo_0/obs/agentview_rgb"]
        place, size = data.id.get_offset(), data.nbytes
    content = path.read_bytes()
    field = place.to_bytes(8, "little") + size.to_bytes(8, "little")
    assert content.count(field) == 1
    path.write_bytes(content.replace(field, (place + move).to_bytes(8, "little") + field[8:]))
    with pytest.raises(SourceError, match=r"lie on one another|outside the file|cannot read"):
        read(path)


def test_two_demonstrations_that_share_their_images_are_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t_demo.hdf5", {f"demo_{n}": demo_arrays(make_world(n)) for n in range(3)})
    with h5py.File(path, "r+") as file:
        del file["data/demo_2"]
        file["data/demo_2"] = file["data/demo_0"]
    header = inspect_file(path)
    assert tuple(header.episodes) == ("demo_1",)
    assert [demo for demo, _ in header.refused] == ["demo_0", "demo_2"]


def test_filters_that_no_demonstration_needs_and_odd_types_are_refused(tmp_path: Path) -> None:
    def lzf(demo: h5py.Group) -> None:
        images = demo["obs/agentview_rgb"][()]
        del demo["obs/agentview_rgb"]
        demo.create_dataset("obs/agentview_rgb", data=images, compression="lzf")

    def swapped(demo: h5py.Group) -> None:
        values = demo["actions"][()]
        del demo["actions"]
        demo["actions"] = values.astype(">f8")

    for name, edit, reason in (("a", lzf, "expected filters"), ("b", swapped, "expected float")):
        with pytest.raises(SourceError, match=reason):
            read(change(write(tmp_path / name, make_world()), edit))
