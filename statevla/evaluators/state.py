"""What the states of an encoder are worth: probes of actions, straightness, and, where it paints, its pictures.

Legend: N frames, C cameras, S side, F numbers of a state, A continuous action dimensions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from statevla.config import DataConfig
from statevla.data.batch import ObservationBatch
from statevla.data.loaders import iterate_once
from statevla.encoders.vision import CONV, load_backbone, require_identity
from statevla.evaluators.state_between import mean_order, sheet
from statevla.evaluators.state_loop import Loop, Trials, goals_of, planners, run_plans
from statevla.evaluators.state_measures import Probe, bend
from statevla.evaluators.state_painting import (
    Pictures,
    paint_frames,
    paint_ways,
    require_guidance,
    seen_by,
    told_painting,
)
from statevla.evaluators.state_plan import DISTANCES, END, STEP, Planned, Plans, plan_all
from statevla.evaluators.state_probes import HORIZONS, Coded, Floats, Found, kept_vectors, probe_all
from statevla.policies.prepare import choose_device
from statevla.reports.tables import markdown_table
from statevla.runs.files import MODEL, load_strict, read_tensors
from statevla.runs.layout import LATEST, run_of
from statevla.runs.state import read_state, require_store
from statevla.systems.find import resolve
from statevla.systems.stamo import StamoModel
from statevla.systems.stamo_options import PARENT
from statevla.systems.system import Given, Objective
from statevla.systems.table import SYSTEMS, config_of, require_kind
from statevla.systems.temporal_jepa import JepaModel
from stores.disk import durable
from stores.errors import UsageError
from stores.images import encode_image
from stores.progress import Progress, ProgressEvent
from stores.reader import Store

POOLED: Final = 8
STATE, PIXELS, ACTION, GRIPPER, EPISODE, ROW = "state", "pooled pixels", "action", "gripper", "episode", "row"
"""Names of what is read off a split; the first two are rows of the probes' table."""
JSON: Final = "state.json"
MARKDOWN: Final = "state.md"
BETWEEN: Final = "between_{camera}.png"
JEPA: Final = "temporal_jepa"
LOOPS: Final = ("plan", "suite", "successes / trials", "success, 95 %", "progress to the goal's state")


@dataclass(frozen=True)
class StateResults:
    """probes: by feature and horizon; gripper: likewise of the binary actions, empty where there is none. plans: by
    feature and distance to the goal (`state_plan`). bends: by what pairs. pictures: None of an encoder that paints
    none; between, sheets: likewise empty, the straight way between two states (`state_between`), uint8 [H W 3] by
    camera. loops: of plans as policies (`state_loop`), empty where none was tried.
    """

    system: str
    checkpoint: str
    state_numbers: int
    episodes: dict[str, int]
    probes: dict[str, Found]
    plans: dict[str, Plans]
    bends: dict[str, float]
    pictures: Pictures | None
    between: dict[str, dict[str, float]] = field(default_factory=dict)
    sheets: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = field(default=())
    loops: dict[str, Loop] = field(default_factory=dict)
    gripper: dict[str, Found] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        told = {**asdict(replace(self, sheets={})), "notes": list(self.notes)}
        del told["sheets"]
        return told

    def to_markdown(self) -> str:
        """One table for each question."""
        parts = [
            f"# States of {self.checkpoint}",
            "R² of a linear probe: the actions summed over k steps, from the difference of k frames; in brackets 95 % "
            "of a bootstrap over the validation episodes. Actions count as displacements: where they are positions to "
            "reach, their sums, and the straight ways below, mean nothing",
            _probe_table(self.probes),
            *(
                ("The same of the gripper's commands (-1 open, +1 close)", _probe_table(self.gripper))
                if self.gripper
                else ()
            ),
            f"Correlation of the demonstrated actions of {STEP} steps with those of the straight way to the feature of "
            "a later frame, by how many frames later; in brackets 95 % likewise",
            markdown_table(
                ["feature", *(str(distance) for distance in DISTANCES), END],
                [[name, *(_told_plan(each) for each in found.values())] for name, found in self.plans.items()],
            ),
            markdown_table(["pairs", "bend"], [[name, f"{value:.3f}"] for name, value in self.bends.items()]),
        ]
        if self.pictures is not None:
            painted = self.pictures
            columns = painted.whole, painted.moving, painted.ssim, painted.ssim_moving
            rows = [[name, *(_told(each[name], 2) for each in columns)] for name in painted.whole]
            heads = ["painted by", "PSNR, dB", "PSNR where it moves, dB", "SSIM", "SSIM where it moves"]
            parts.append(markdown_table(heads, rows))
        if self.loops:
            parts.append("Plans to the picture that the expert ends with, as policies; progress is 1 where one arrives")
            parts.append(markdown_table(LOOPS, [_told_loop(*each) for each in self.loops.items()]))
        if self.between:
            rows = [[name, f"{found['tau']:.2f}", f"{found['passed']:.1f}"] for name, found in self.between.items()]
            heads = [
                "nine pictures between two frames, by",
                "Kendall's τ of the nearest true frame",
                "true frames passed",
            ]
            parts.append(markdown_table(heads, rows))
        return "\n\n".join([*parts, *(f"- {note}." for note in self.notes)])

    def save(self, out: Path) -> None:
        """Write ``state.json`` and ``state.md``, and where it paints ``between_N.png`` of camera N: true frames, the
        straight way between the outer two's states, and their blend.
        """
        durable.make_dir(out)
        durable.write_json(out / JSON, self.to_dict())
        durable.write_text(out / MARKDOWN, self.to_markdown() + "\n")
        for camera, picture in self.sheets.items():
            durable.write_bytes(out / BETWEEN.format(camera=camera), encode_image(picture, "png"))


def evaluate_states(
    checkpoint: Path, store: Store, device: str = "auto", seed: int = 0, progress: Progress | None = None,
    beside: Sequence[Path] = (), trials: Trials | None = None, guidance: float = 1.0,
) -> StateResults:  # fmt: skip
    """Fit on the train split, measure on the validation split, whole episodes apart.

    checkpoint: of an encoder, or its run. beside: further ones, whose states are probed on the same frames. trials: in
    which plans to a goal act. guidance: of what is painted (`StamoModel.decode`). Raises UsageError for a policy's, for
    a store without validation episodes and for guidance of what does not paint or always had its state, StaleKey for
    another store's, StoreMissing, StoreCorrupt, and with trials what `evaluate` raises.
    """
    if store.manifest.splits["val"] == 0:
        raise UsageError(f"{store.root}: no validation episodes; ingest with --train-split below 1")
    where = choose_device(device)
    goals = None if trials is None else goals_of(trials, store)
    own = load_encoder(checkpoint, store, where)
    model = own.model
    if guidance != 1:
        require_guidance(model, own.system, guidance)
    models, systems = {STATE: model}, {own.system}
    for path in beside:
        other = load_encoder(path, store, where)
        name = f"{other.system} of {run_of(other.folder).name}"
        if name in models:
            raise UsageError(f"--beside {path}: {name} is there already; name each encoder once")
        models[name] = other.model
        systems.add(other.system)
    kept, notes = kept_vectors(store)
    if JEPA not in systems:
        notes.append(f"states of {JEPA} are absent; name one of this store with --beside")
    coded = {split: _code(models, kept, store, split, where, progress) for split in ("train", "val")}
    loops: dict[str, Loop] = {}
    if trials is not None and goals is not None:

        def states(obs: ObservationBatch) -> Tensor:
            with torch.inference_mode():
                return state_of(model, obs.to(where)).float()

        plans = planners(store, coded["train"], STATE, states, goals, own.weights, own.init_states, seed)
        loops = run_plans(plans, trials, seed, progress)
    probes, gripper = probe_all(coded["train"], coded["val"], seed)
    pictures, ways = None, []
    if isinstance(model, StamoModel):
        pictures = paint_frames(models, store, where, seed, guidance)
        ways = paint_ways(model, store, where, seed, guidance)
    return StateResults(
        system=own.system,
        checkpoint=str(own.folder),
        state_numbers=coded["val"].features[STATE].shape[1],
        episodes={split: len(np.unique(each.episode)) for split, each in coded.items()},
        probes=probes,
        gripper=gripper,
        plans=plan_all(coded["train"], coded["val"], seed),
        bends=_bends(coded["val"], seed),
        pictures=pictures,
        between=mean_order(ways),
        sheets={camera: sheet(ways[0], place) for place, camera in enumerate(seen_by(model))} if ways else {},
        notes=(*_frozen(model, own.tower), *told_painting(model, store, guidance), *notes),
        loops=loops,
    )


class Loaded(NamedTuple):
    """An encoder. tower: identity of its frozen vision backbone. weights: sha256 of its file. init_states: by task,
    those that its demonstrations started from.
    """

    model: Objective
    system: str
    folder: Path
    tower: dict[str, Any] | None
    weights: str
    init_states: dict[str, list[str]]


def load_encoder(checkpoint: Path, store: Store, device: torch.device) -> Loaded:
    """Of a checkpoint or run, to be measured on the store that it was trained on. Raises as `evaluate_states`."""
    folder = resolve(checkpoint, [row for row in SYSTEMS if row.kind == "encoder"], (LATEST,))
    state = read_state(folder)
    row = require_kind(state, "encoder", folder)
    require_store(state, store.content_hash, folder, str(store.root))
    config = config_of(state, folder)
    backbone = load_backbone(config.model, device)
    require_identity(backbone, state.backbone, str(folder))
    model = row.build(config, Given(store.spec, store.stats(), backbone))
    load_strict(model, read_tensors(folder, state, MODEL), str(folder / MODEL))
    model.to(device).eval().requires_grad_(False)
    return Loaded(model, row.name, folder, state.backbone, state.files[MODEL]["sha256"], state.init_states)


def _frozen(model: Objective, tower: dict[str, Any] | None) -> Iterator[str]:
    """What of a StaMo is not trained."""
    if not isinstance(model, StamoModel):
        return
    if model.options.features == PARENT:
        yield f"its features are the tokens of a frozen {JEPA}, which has read instruction and robot state before them"
    elif model.options.features == CONV or tower is None:
        yield "nothing of this encoder is frozen: its features are those of convolutions trained with the rest"
    else:
        yield f"its features are of the frozen {model.options.features} {tower['model']}, revision {tower['revision']}"


def state_of(model: Objective, obs: ObservationBatch) -> Tensor:
    """Flat states [B F] of an encoder's system."""
    if isinstance(model, StamoModel):
        return model.state(obs).flatten(1)
    if isinstance(model, JepaModel):
        return model.encoder.state(obs)
    raise UsageError(f"{type(model).__name__} has no states to measure")


def _code(
    models: Mapping[str, Objective], kept: Mapping[str, Floats], store: Store, split: str, device: torch.device,
    progress: Progress | None,
) -> Coded:  # fmt: skip
    """One pass over the split's pictures. kept: of every frame of the store."""
    parts: list[dict[str, NDArray[Any]]] = []
    continuous, statistics = list(store.spec.continuous), store.stats().action
    shift, scale = np.asarray(statistics.mean)[continuous], np.asarray(statistics.std)[continuous]
    first = np.asarray(store.episode_columns["first_frame"], dtype=np.int64)
    with torch.inference_mode():
        for number, batch in enumerate(iterate_once(store, split, 64, 1, DataConfig(cache_gib=0.0))):
            obs = batch.obs.to(device)
            part = {name: state_of(model, obs).float().cpu().numpy() for name, model in models.items()}
            pooled = [nn.functional.adaptive_avg_pool2d(f.permute(0, 3, 1, 2).float() / 255, POOLED).flatten(1)
                      for f in batch.obs.images]  # fmt: skip
            part[PIXELS] = torch.cat(pooled, 1).numpy()
            part[ACTION] = (batch.action.numpy()[:, continuous] - shift) / np.maximum(scale, 1e-8)
            part[GRIPPER] = batch.action.numpy()[:, list(store.spec.binary)]
            part[EPISODE] = batch.episode.numpy()
            part[ROW] = first[part[EPISODE]] + batch.frame.numpy()
            parts.append(part)
            if progress is not None:
                progress(ProgressEvent(f"states of {split}", number + 1, None, "batches", ""))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((joined[ROW], joined[EPISODE]))
    action, gripper, episode, row = (joined.pop(name)[order] for name in (ACTION, GRIPPER, EPISODE, ROW))
    features = {name: values[order] for name, values in joined.items()}
    features |= {name: values[row] for name, values in kept.items()}
    return Coded(features, action.astype(np.float64), episode.astype(np.int64), row, gripper.astype(np.float64))


def _told_loop(name: str, found: Loop) -> list[str]:
    rate = "-" if not found.trials else f"{found.successes / found.trials:.0%} ({found.low:.0%} to {found.high:.0%})"
    return [name, found.suite, f"{found.successes} / {found.trials}", rate, _told(found.progress, 2)]


def _told(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _told_between(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.2f} to {high:.2f})"


def _probe_table(probes: Mapping[str, Found]) -> str:
    horizons = [str(k) for k in HORIZONS]
    rows = [[name, *(_told_probe(found[k]) for k in horizons)] for name, found in probes.items()]
    return markdown_table(["feature", *(f"k = {k}" for k in horizons)], rows)


def _told_probe(found: Probe | None) -> str:
    return "-" if found is None else _told_between(found.r2, found.low, found.high)


def _told_plan(found: Planned | None) -> str:
    return "-" if found is None else _told_between(found.r, found.low, found.high)


def _bends(coded: Coded, seed: int) -> dict[str, float]:
    """Means over an episode's own frames ten apart, and over frames of random order as the control."""
    rng, own, mixed = np.random.default_rng(seed), [], []
    horizon = max(HORIZONS)
    for episode in _episodes(coded):
        states = coded.features[STATE][episode].astype(np.float64)
        if len(states) > horizon:
            own.append(bend(states, horizon))
            mixed.append(bend(states[rng.permutation(len(states))], horizon))
    if not own:
        return {}
    return {"frames of an episode": float(np.concatenate(own).mean()),
            "the same frames in random order": float(np.concatenate(mixed).mean())}  # fmt: skip


def _episodes(coded: Coded) -> Iterator[NDArray[np.int64]]:
    for number in np.unique(coded.episode):
        yield np.flatnonzero(coded.episode == number)
