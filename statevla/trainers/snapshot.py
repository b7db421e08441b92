"""A training run at one moment, ready to be written: everything that a resumed run and a policy need."""

from typing import TYPE_CHECKING

import torch

from statevla.data.prefetch import Position
from statevla.encoders.vision import identity
from statevla.runs import write as checkpoint
from statevla.runs.migrations import FORMAT
from statevla.runs.state import KEPT, CheckpointState
from statevla.version import __version__
from stores.init_states import init_states_by_task
from stores.made_by import made_by

if TYPE_CHECKING:
    from statevla.trainers.run import Run


def snapshot(run: "Run", position: Position) -> checkpoint.Snapshot:
    """`run` as it is, copied to the CPU. The model is what acts; weights as trained stand beside the optimizer's."""
    training, store = run.config.training, run.store
    instructions = sorted(store.manifest.instructions)
    language = store.language
    state = CheckpointState(
        format=FORMAT,
        system=run.system.name,
        epoch=position.epoch,
        step=run.step,
        loader={**run.loader.state(position), KEPT: run.kept},
        loss=run.last_loss,
        best=run.best,
        scheduler={
            "name": training.schedule,
            "base": run.options.learning_rate,
            "warmup_steps": training.warmup_steps,
            "total_steps": run.total,
        },
        rng={**checkpoint.rng_state(), "noise_seed": training.seed},
        config=run.config.to_dict(),
        obs_spec=store.obs_spec,
        statistics=run.statistics.to_dict(),
        content_hash=store.content_hash,
        instructions=instructions,
        init_states=init_states_by_task(store.manifest.sources),
        made_by=made_by(store.manifest.sources),
        language={"encoder": language.encoder, "revision": language.revision},
        backbone=identity(run.backbone),
        parent=run.parent,
        code_version=__version__,
        files={},
    )
    vectors = torch.stack([torch.from_numpy(language.vector(text).copy()) for text in instructions])
    optimizer = checkpoint.optimizer_tensors(run.optimizer)
    if run.average is not None:
        optimizer |= run.average.slots()
    saved = checkpoint.copy_tensors(optimizer)
    with run.acting_weights():
        return checkpoint.Snapshot(state, checkpoint.copy_tensors(run.model.state_dict()), saved, vectors)
