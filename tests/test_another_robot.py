"""Another robot, another format: two arms, three cameras of two sizes, two tasks a file, 10 Hz.

No file of the product is touched.
The format is a row of the table of sources, defined here; everything after it takes its widths from the store.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.sources import pulse, table
from pipelines.sources.evidence import Told
from pipelines.sources.source import Episode, EpisodeHead, SourceFile, Verdict
from statevla.config import Config, load_config
from statevla.evaluators.offline import evaluate_offline
from statevla.observation import Observation
from statevla.policies.policy import Policy
from statevla.runs import layout
from statevla.trainers.trainer import train
from stores.errors import ObsSpecMismatch, SourceError, UsageError
from stores.reader import Store
from stores.spec import BINARY, CONTINUOUS, ActionField, Camera, ObsSpec, StateField
from stores.verify import verify_store

SPEC = ObsSpec(
    cameras=(Camera("front", 24, 32), Camera("left_wrist", 16, 16), Camera("right_wrist", 16, 16)),
    robot_state=(StateField("left", 7, "rad"), StateField("right", 7, "rad")),
    action=(
        ActionField("left_arm", 4, CONTINUOUS, "rad"),
        ActionField("left_hand", 1, BINARY, "-1 open, +1 close"),
        ActionField("right_arm", 4, CONTINUOUS, "rad"),
        ActionField("right_hand", 1, BINARY, "-1 open, +1 close"),
    ),
    control_hz=10,
)
TASKS = {"fold": "fold the cloth", "hang": "hang the cloth up"}


def toy_episode(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Actions follow the state; hands close half-way; pictures show the moment."""
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.normal(0, 0.05, (rows, 14)), axis=0).astype(np.float32)
    action = np.tanh(state[:, :10]).astype(np.float32)
    action[:, [4, 9]] = np.where(np.arange(rows) < rows // 2, -1, 1)[:, None]
    pictures = {
        camera.name: np.broadcast_to(
            ((10 * np.arange(rows))[:, None, None, None] % 200).astype(np.uint8)
            + np.arange(camera.width, dtype=np.uint8)[None, None, :, None],
            (rows, camera.height, camera.width, 3),
        )
        for camera in SPEC.cameras
    }
    return {"state": state, "action": action, **pictures}


def write_toy(path: Path, episodes: int = 8, seed: int = 0) -> None:
    arrays: dict[str, Any] = {}
    for number in range(episodes):
        task = list(TASKS)[number % 2]
        for name, array in toy_episode(seed + number, 12 + number).items():
            arrays[f"{task}_{number}.{name}"] = array
    np.savez(path, **arrays)


class ToyOpened:
    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    def episode(self, name: str) -> Episode:
        if f"{name}.state" not in self._arrays:
            raise SourceError(f"{name}: no such episode")
        pictures = {camera: self._arrays[f"{name}.{camera}"] for camera in SPEC.camera_names}

        def images(camera: str, start: int, stop: int, into: np.ndarray | None) -> np.ndarray:
            return pictures[camera][start:stop]

        sizes = tuple(pictures[camera].shape[1:3] for camera in SPEC.camera_names)
        state, action = self._arrays[f"{name}.state"], self._arrays[f"{name}.action"]
        return Episode(name, state, action, "before", sizes, images)

    def fingerprint(self, name: str) -> str:
        return str(sorted((key, hash(a.tobytes())) for key, a in self._arrays.items() if key.startswith(f"{name}.")))


class ToySource:
    name, format, suffixes = "toy", 1, (".npz",)

    def recognizes(self, path: Path) -> bool:
        return True

    def inspect(self, path: Path, told: Told, poison: Mapping[int, str], files: int = 1) -> SourceFile:
        heads = {}
        with np.load(path, allow_pickle=False) as arrays:
            names = dict.fromkeys(key.split(".")[0] for key in arrays.files)
            for position, name in enumerate(names, 1):
                pulse.at(position)
                sizes = tuple(arrays[f"{name}.{camera}"].shape[1:3] for camera in SPEC.camera_names)
                task = name.split("_")[0]
                heads[name] = EpisodeHead(len(arrays[f"{name}.state"]), sizes, task, TASKS[task])
        return SourceFile(path.name, SPEC, heads)

    def weigh(self, files: Mapping[str, SourceFile], told: Told) -> Verdict:
        return Verdict({name: {} for name in files})

    @contextlib.contextmanager
    def open(self, path: Path, facts: Mapping[str, Any], told: Told) -> Iterator[ToyOpened]:
        with np.load(path, allow_pickle=False) as arrays:
            yield ToyOpened({name: arrays[name] for name in arrays.files})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of two toy files."""
    folder = tmp_path_factory.mktemp("robot")
    (folder / "source").mkdir()
    write_toy(folder / "source" / "a.npz")
    write_toy(folder / "source" / "b.npz", 4, seed=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table.SOURCES, "toy", ToySource())
        summary = ingest(
            IngestConfig("bench", folder / "source", folder / "store", window=8, codec="png", language="hashed",
                         train_split=0.75)
        )  # fmt: skip
        assert (summary.episodes, summary.quarantined, summary.notes) == (12, 0, ())
        compute_statistics(folder / "store")
        yield folder


def config(*more: str) -> Config:
    settings = (
        "model.image_size=16", "model.patch_size=8", "model.embed_dim=32", "model.encoder_depth=1", "model.d_state=4",
        "model.policy_layers=1", "model.policy_d_state=4", "model.gripper_width=16", "model.action_seq_len=6",
        "training.batch_size=8", "training.max_steps=3", "training.torch_threads=1", "training.device=cpu",
        "training.phase1.temporal_predictor_hidden_dim=16", "training.phase1.inverse_dynamics_weight=0.1",
        "data.lanes=2", "data.block_segments=2",
    )  # fmt: skip
    return load_config("tiny", None, (*settings, *more))


def test_the_store_says_what_the_robot_is(root: Path) -> None:
    assert verify_store(root / "store") == []
    store = Store.open(root / "store")
    assert store.spec == SPEC
    assert store.spec.control_hz == 10
    tasks = dict(zip(store.episode_columns["task"], store.episode_columns["instruction"], strict=True))
    assert tasks == TASKS
    wanted = toy_episode(2, 14)
    row = store.episode_columns["id"].tolist().index("a.npz/fold_2")
    first, frames = (int(store.episode_columns[name][row]) for name in ("first_frame", "frames"))
    np.testing.assert_array_equal(store.frames["robot_state"][first : first + frames], wanted["state"])
    np.testing.assert_array_equal(store.frames["action"][first : first + frames], wanted["action"])
    pictures = store.decode_segment(int(store.episode_columns["first_segment"][row]))
    for camera, shown in zip(SPEC.camera_names, pictures, strict=True):
        np.testing.assert_array_equal(shown, wanted[camera][: len(shown)])
    shift, scale = store.stats().affine("action", store.spec)
    assert [(shift[d], scale[d]) for d in SPEC.binary] == [(0.0, 1.0)] * 2
    assert (scale[list(SPEC.continuous)] != 1.0).all()


@pytest.mark.parametrize("context", ["z", "z+tokens"])
def test_the_whole_way_to_a_trained_policy_and_its_evaluation(root: Path, tmp_path: Path, context: str) -> None:
    settings, store = config(f"model.policy_context={context}"), Store.open(root / "store")
    first = train("temporal_jepa", settings, root / "store", tmp_path / "run")
    encoder = layout.checkpoints(tmp_path / "run", "phase1_temporal_jepa") / layout.LATEST
    assert first.steps == 3
    train("flow_matching", settings, root / "store", tmp_path / "run", encoder_checkpoint=encoder)
    policy = Policy.load(layout.checkpoints(tmp_path / "run", "phase2_flow_matching") / layout.LATEST)
    assert policy.obs_spec == SPEC
    assert policy.model.noise_shape == (6, 8)
    results = evaluate_offline(policy, store)
    assert tuple(results.mse) == SPEC.action_names
    assert tuple(results.mse_normalized_by_dimension) == tuple(SPEC.action_names[d] for d in SPEC.continuous)
    assert 0 <= (results.gripper_accuracy or -1) <= 1
    assert results.gripper_ece is not None
    assert results.smoothness.policy_jerk is not None
    assert "left_hand" in results.to_markdown()
    segment = store.read_segment(0)
    images = tuple(frames[0] for frames in segment.decode())
    observation = Observation(images, segment.robot_state[0], TASKS["fold"])
    acted = policy.act([observation])
    assert acted.chunk.shape == (1, 6, 10)
    assert torch.isin(acted.chunk[..., list(SPEC.binary)], torch.tensor([-1.0, 1.0])).all()
    assert acted.closing is not None
    assert acted.closing.shape == (1, 6, 2)
    with pytest.raises(ObsSpecMismatch, match="front: the policy has uint8 \\[24, 32, 3\\]"):
        policy.act([Observation((images[1], *images[1:]), segment.robot_state[0], TASKS["fold"])])


def test_continuous_and_binary_dimensions_come_back_in_their_places(root: Path) -> None:
    """Interleaved kinds: what the classifier says goes to the binary places, whatever the flow gives to the others."""
    policy = Policy.untrained(config(), Store.open(root / "store"))
    model: Any = policy.model
    z = torch.zeros(1, 32)
    with torch.no_grad():
        model.gripper.layers[-1].weight.zero_()
        model.gripper.layers[-1].bias.copy_(torch.tensor([3.0, -3.0] * 6))
        model.standardize_action.shift.zero_()
        model.standardize_action.scale.fill_(1.0)
        model.flow.head[-1].weight.zero_()
        model.flow.head[-1].bias.zero_()
        noise = torch.arange(48.0).reshape(1, 6, 8)
        encoded = type(model.encode_tokens(torch.zeros(1, 3, 32)))(z, z.new_empty(1, 0, 32))
        chunk = model.sample(encoded, noise, model.flow.level_tokens(4)).chunk
    assert torch.equal(chunk[..., list(SPEC.continuous)], noise)
    assert torch.equal(chunk[..., list(SPEC.binary)], torch.tensor([1.0, -1.0]).expand(1, 6, 2))


def test_a_spec_that_the_data_contradict_is_refused_by_field(root: Path, tmp_path: Path) -> None:
    wrong = SPEC.to_dict()
    wrong["robot_state"][1]["width"] = 6
    told = IngestConfig("bench", root / "source", tmp_path / "store", language="hashed", spec=ObsSpec.from_dict(wrong))
    with pytest.raises(SourceError, match=r"robot_state: expected float32 \[\*, 13\]"):
        ingest(told)
    wide = ObsSpec.from_dict({**SPEC.to_dict(), "language_width": 384})
    with pytest.raises(UsageError, match=r"language_width 384.*gives 512"):
        ingest(IngestConfig("bench", root / "source", tmp_path / "store", language="hashed", spec=wide))


def test_an_unknown_format_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--format rosbag: expected one of libero"):
        IngestConfig("bench", tmp_path, tmp_path / "store", format="rosbag")


def test_a_spec_travels_as_json(root: Path) -> None:
    manifest = json.loads((root / "store" / "manifest.json").read_bytes())
    assert ObsSpec.from_dict(manifest["obs_spec"]) == SPEC
    assert manifest["obs_spec"]["cameras"][0] == {"name": "front", "height": 24, "width": 32}
