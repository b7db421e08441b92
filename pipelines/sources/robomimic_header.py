"""What a robomimic file (`pipelines.sources.robomimic`) says of itself, before its demonstrations are read."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.ingest.plan import DEMO_LIMIT, natural_key, require_fitting
from pipelines.sources import evidence, gripper, hdf5, pulse
from pipelines.sources.alignment import AFTER, BEFORE
from pipelines.sources.evidence import UPRIGHT, Told, looks_of, sample
from pipelines.sources.fields import told_fields
from pipelines.sources.libero_demo import read_hand
from pipelines.sources.libero_header import drop_astray, read_masks
from pipelines.sources.orientation import Look
from pipelines.sources.robomimic_demo import fingers_of, read_demo, shown_alignment
from pipelines.sources.robomimic_keys import (
    Keys,
    cameras_of,
    ends_with_gripper,
    environment,
    find_keys,
    instruction_of,
)
from pipelines.sources.source import Episode, EpisodeHead, SourceFile
from stores.errors import SourceError

HAND: Final = "obs/robot0_eef_pos"


def inspect(file: h5py.File, where: str, told: Told, poison: Mapping[int, str], files: int) -> SourceFile:
    """See `pipelines.sources.source.Source.inspect`. where: the file's name."""
    data = hdf5.group(file, "data")
    fields, env = told_fields(told.fields, told.spec), environment(data)
    found = list(data)
    names = sorted((name for name in found if isinstance(name, str)), key=natural_key)
    places = {name: at for at, name in enumerate(names, 1)}
    odd = [name.decode(errors="backslashreplace") for name in found if isinstance(name, bytes)]
    if not names:
        raise SourceError("/data holds no demonstrations")
    first, keys, notes = find_keys(data, {name: at for name, at in places.items() if at not in poison}, fields, env)
    split, beside = read_masks(file, names, told.masks, where)
    notes = [*(f"{where}: {note}" for note in notes), *beside, *split.notes]
    refused = [*((name, f"{where}/{name}: expected a name in UTF-8") for name in odd), *split.refused]
    unwanted = {*split.out, *(demo for demo, _ in split.refused)}
    heads: dict[str, EpisodeHead] = {}
    assumed: set[str] = set()
    for name, position in places.items():
        pulse.at(position)
        if name in unwanted:
            continue
        try:
            with hdf5.reporting(f"{where}/{name}"):
                require_fitting(name, DEMO_LIMIT)
                if position in poison:
                    raise SourceError(poison[position])
                demo = hdf5.group(data, name)
                pictures = cameras_of(demo, keys)
                sizes = tuple((int(item.shape[1]), int(item.shape[2])) for item in pictures.values())
                text, own = instruction_of(demo, fields, env)
                assumed |= set() if own else {text}
                rows = min(int(item.shape[0]) for item in pictures.values())
                heads[name] = EpisodeHead(rows, sizes, env.get("env_name") or text, text)
        except SourceError as error:
            refused.append((name, str(error)))
    notes += [f"{where}: instruction taken from env_name: {text!r} (--spec says otherwise)" for text in sorted(assumed)]
    refused += drop_astray(file, heads)
    shown, unreadable = _gather(file, where, heads, keys, places, files)
    for name, _ in unreadable:
        del heads[name]
    parts = {demo: part for demo, part in split.parts.items() if demo in heads}
    shown["keys_from"] = first
    return SourceFile(where, keys.spec, heads, shown, parts, (*refused, *unreadable), tuple(notes))


def _gather(
    file: h5py.File, where: str, heads: Mapping[str, EpisodeHead], keys: Keys, places: Mapping[str, int], files: int
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What sampled demonstrations show of alignment, gripper and pictures, JSON-ready; and those that are refused for
    what nobody reads but to be shown something. One that cannot be read shows nothing: reading it says why.
    """
    found: dict[str, list[Any]] = {"alignment": [], "gripper": [], "looks": []}
    refused: list[tuple[str, str]] = []
    for demo in sample(list(heads)):
        pulse.at(places[demo])
        looked_at = len(found["looks"]) < looks_of(files)
        try:
            with hdf5.reporting(f"{where}/{demo}"):
                rows = hdf5.group(file, f"data/{demo}")
                hand = read_hand(rows, HAND, heads[demo].rows) if looked_at else None
        except SourceError as error:
            refused.append((demo, str(error)))
            continue
        with contextlib.suppress(SourceError), hdf5.reporting(f"{where}/{demo}"):
            episode = read_demo(file, demo, keys, {"alignment": BEFORE, "image_convention": UPRIGHT}, None, False)
            aligned = shown_alignment(rows, len(episode.robot_state), keys)
            found["alignment"] += [] if aligned is None else [aligned]
            if ends_with_gripper(keys.spec):
                action = episode.action[1:] if aligned == AFTER else episode.action
                found["gripper"].append(asdict(gripper.see(action[:, -1], fingers_of(episode.robot_state, keys))))
            if looked_at:
                found["looks"].append(asdict(_look(episode, keys.spec.camera_names[0], hand)))
    return found, refused


def _look(episode: Episode, camera: str, hand: NDArray[Any] | None) -> Look:
    """Pictures of some moments of a camera, with the hand's height where the file has it."""

    def read(row: int) -> NDArray[np.uint8]:
        pulse.beat()
        frame: NDArray[np.uint8] = episode.images(camera, row, row + 1, None)[0]
        return frame

    return evidence.look(read, len(episode.robot_state), hand)
