"""Whether a run trains from states that are kept instead of pictures, and where they are; said in its log."""

from pathlib import Path
from typing import TYPE_CHECKING

from statevla.data.blocks import GIB
from statevla.data.views import open_latents
from statevla.encoders.vision import identity
from statevla.trainers.latents import Coder, compute_latents, find_latents, is_writable, made_from
from stores.errors import StoreMissing

if TYPE_CHECKING:
    from statevla.trainers.trainer import Run


def use_kept_states(run: "Run") -> None:
    """Let the loaders of a policy on a frozen encoder give its states, computing those that are not there yet.

    Raises StoreLocked while another process computes them.
    """
    data, training, encoder = run.config.data, run.config.training, run.model.frozen_encoder
    if not run.system.parent or run.step == run.total:
        return
    why = None
    if encoder is None:
        why = "this policy sees more of a frame than the encoder's state"
    elif not data.latents:
        why = "data.latents is off"
    elif data.shuffle_instructions:
        why = "data.shuffle_instructions pairs frames with other instructions than their own"
    elif training.augment_shift or training.augment_colour or training.augment_affine:
        why = "augmentation makes other pictures at every step"
    if why is not None or encoder is None:
        run.report(run.step, f"encodes every frame at every step: {why}")
        return
    made = made_from(run.store, encoder, run.config.model, identity(run.backbone), run.autocast)
    root = Path(run.store.root) if is_writable(run.store) else run.run_dir

    def compute() -> None:
        if run.ranks.first and find_latents(run.store, made, run.run_dir) is None:
            run.report(run.step, f"encodes every frame once, into {root}/latents; then trains from that")
            coder = Coder(encoder, run.device, run.autocast, training.batch_size, data.loader_threads)
            compute_latents(run.store, root, made, coder, dict(run.parent or {}), run.progress)

    run.ranks.together(compute)
    found = find_latents(run.store, made, run.run_dir)
    if found is None:
        raise StoreMissing(
            f"{root}/latents: rank 0 has written the encoder's states there, but rank {run.ranks.rank} does not find "
            "them; ranks on several machines need one file system, or --set data.latents=false"
        )
    view = open_latents(found, data.cache_gib * GIB)
    run.report(run.step, f"trains from latents/{found.name}, no picture is opened")
    for source in (run.loader.source, *(() if run.validation is None else (run.validation.source,))):
        source.view = view
