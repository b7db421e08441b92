"""The policy of phase 2, on a frozen state encoder: flow matching for the continuous dimensions of an action, a
classifier for the binary ones.

With a world head (``training.phase2.world_*``) the flow's network also predicts the encoder's later state. It is read
from the mean of the last hidden states of the action tokens that are not padding. FLARE (arXiv 2505.15659) aligns
future latents inside a denoising transformer in a like way, but with tokens made for it.

Legend: B batch, N tokens, D width, K actions of a chunk, A numbers of an action, of them C continuous and G binary,
I instructions, L numbers of an embedding, S sampling steps.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from statevla.config import Config
from statevla.data.batch import Batch, ObservationBatch
from statevla.models.encoder import Encoded, MambaBlock, StateEncoder
from statevla.models.flow import FlowPolicy, GatedMlp, interpolate, velocity_target
from statevla.models.gripper import GripperClassifier, command, is_closing
from statevla.models.losses import LossParts, masked_bce, masked_mse
from statevla.models.monitors import change_monitor
from statevla.models.standardize import Standardize
from statevla.models.tokenizer import FrozenFeatures
from statevla.runs.files import MODEL, below, load_strict
from statevla.systems.acting import Acted, Scene
from statevla.systems.system import Given, Noise, Terms
from statevla.systems.world import Foretelling
from stores.errors import UsageError
from stores.spec import LIBERO
from stores.statistics import Normalization


class FlowNoise(NamedTuple):
    """Everything random in one loss. sigma: noise level, uniform on [0, 1). epsilon: noise, standard normal."""

    sigma: Float[Tensor, " B"]
    epsilon: Float[Tensor, "B K C"]


def draw_noise(
    rows: int, chunk: int, generator: torch.Generator, device: torch.device, dims: int = len(LIBERO.continuous)
) -> FlowNoise:
    """Noise for `rows` chunks of `dims` continuous dimensions, from `generator` alone.

    It is drawn on the generator's device and moved to `device`, so a CPU generator gives every device the same numbers.
    """
    sigma = torch.rand(rows, generator=generator, device=generator.device)
    epsilon = torch.randn(rows, chunk, dims, generator=generator, device=generator.device)
    return FlowNoise(sigma.to(device), epsilon.to(device))


def mean_token(read: Float[Tensor, "B K D"], is_pad: Bool[Tensor, "B K"]) -> Float[Tensor, "B D"]:
    """Mean over the action tokens that are not padding; over all of a row where all are.

    The tokens are causal, so those before the padding have not seen it.
    """
    seen = (~is_pad | is_pad.all(dim=1, keepdim=True)).unsqueeze(-1)
    return torch.where(seen, read, 0.0).sum(dim=1) / seen.sum(dim=1)


class PolicyModel(Foretelling):
    """What phase 2 trains: flow and gripper, and with ``training.phase2.world_*`` a world head.

    encoder: the one given; it is frozen here. The state dict is a whole policy, with the encoder and the statistics,
    but without a frozen vision backbone.
    """

    continuous: Tensor
    binary: Tensor
    places: Tensor

    def __init__(self, config: Config, encoder: StateEncoder, statistics: Normalization | None = None) -> None:
        super().__init__()
        self.config, self.options = config.model, config.training.phase2
        self.gripper_weight = self.options.gripper_weight
        self.encoder = encoder.requires_grad_(False)
        self.spec = encoder.spec
        self.flow = FlowPolicy(config.model, self.spec)
        self.gripper = GripperClassifier(config.model, self.spec)
        self.standardize_action = Standardize("action", statistics, self.spec)
        order = [*self.spec.continuous, *self.spec.binary]
        self._sorted = order == sorted(order)
        for name, dims in (("continuous", self.spec.continuous), ("binary", self.spec.binary)):
            self.register_buffer(name, torch.tensor(dims, dtype=torch.long), persistent=False)
        self.register_buffer("places", torch.tensor(order, dtype=torch.long).argsort(), persistent=False)
        self.make_world(self.options, config, config.model.embed_dim, config.model.embed_dim)

    @torch.no_grad()
    def state_of(self, obs: ObservationBatch) -> Float[Tensor, "B D"]:
        """The frozen encoder's state: the one that came with the observation, where states are kept."""
        state: Tensor = self.encoder.state(obs) if obs.latent is None else obs.latent
        return state.float()

    @torch.no_grad()
    def encode(self, obs: ObservationBatch) -> Encoded:
        """The frozen encoder's state and tokens. Tokens are empty [B 0 D] where the policy does not look at them."""
        if obs.latent is not None:
            return Encoded(obs.latent, obs.latent.new_empty(len(obs.latent), 0, obs.latent.shape[1]))
        return self.encode_tokens(self.encoder.tokenizer(obs))

    @torch.no_grad()
    def encode_tokens(self, tokens: Float[Tensor, "B N D"]) -> Encoded:
        """`encode` from the tokenizer's tokens on."""
        if self.config.policy_context == "z+tokens":
            return self.encoder.encode(tokens)
        z = self.encoder.encode_state(tokens)
        return Encoded(z, z.new_empty(len(z), 0, z.shape[1]))

    def draw(self, rows: int, generator: torch.Generator) -> Noise:
        """``sigma`` and ``epsilon`` of `FlowNoise`."""
        dims = len(self.spec.continuous)
        return draw_noise(rows, self.config.action_seq_len, generator, generator.device, dims)._asdict()

    def terms(self, batch: Batch, noise: Noise) -> Terms:
        """``velocity`` and its target ``wanted`` [B K C], ``logits`` of closing and the truth ``closing`` [B K G],
        ``keep`` [B K], the steps that are not padding; with a world head, what `Foretelling.foretell` adds.

        A row that is all padding (an unlabelled episode) has no action to show: it gets pure noise, σ = 1, as at the
        start of sampling.
        """
        encoded, is_pad = self.encode(batch.obs), batch.is_pad
        hidden = is_pad.all(dim=1)
        sigma = torch.where(hidden, 1.0, noise["sigma"])
        shown = torch.where(hidden[:, None, None], 0.0, self.standardize_action(batch.chunk))
        clean = shown.index_select(-1, self.continuous)
        read = self.flow.read(interpolate(clean, noise["epsilon"], sigma), sigma, encoded.z, encoded.tokens)
        terms = {
            "velocity": self.flow.told(read),
            "wanted": velocity_target(clean, noise["epsilon"]),
            "logits": self.gripper(encoded.z, encoded.tokens),
            "closing": is_closing(batch.chunk.index_select(-1, self.binary)),
            "keep": ~is_pad,
        }
        return terms if self.world is None else terms | self.foretell(mean_token(read, is_pad), batch)

    def loss(self, terms: Terms) -> LossParts:
        """Flow MSE plus weighted gripper BCE over the steps that are not padding, plus a world head's weighted error.

        Parts, named as the StateVLA documents log them: ``pos_rot_loss``, ``gripper_loss`` (unweighted) and their
        weighted sum ``action_loss``; monitor ``gripper_accuracy``, where there is a gripper; those of `WorldHead.loss`.
        """
        keep, logits, closing = terms["keep"], terms["logits"], terms["closing"]
        flow_loss = masked_mse(terms["velocity"], terms["wanted"], keep)
        told = keep.unsqueeze(-1).expand_as(closing)
        gripper_loss = masked_bce(logits, closing, told)
        total = flow_loss + self.gripper_weight * gripper_loss
        right = ((is_closing(logits) == closing) & told).sum() / told.sum().clamp(min=1)
        parts = {
            "pos_rot_loss": flow_loss.detach(),
            "gripper_loss": gripper_loss.detach(),
            "action_loss": total.detach(),
        }
        if self.spec.binary:
            parts["gripper_accuracy"] = right
        return self.world_loss(LossParts(total, parts, keep.sum().float()), self.options, terms)

    def monitors(self, terms: Terms) -> dict[str, float]:
        """``gripper_change_f1``, unless no gripper changes in these rows; and the monitors of a world head."""
        return {**change_monitor(terms), **self.world_monitors(terms)}

    @property
    def sees_by_tower(self) -> bool:
        return isinstance(self.encoder.tokenizer.vision, FrozenFeatures)

    @property
    def frozen_encoder(self) -> StateEncoder | None:
        return self.encoder if self.config.policy_context == "z" else None

    @property
    def state_encoder(self) -> StateEncoder:
        return self.encoder

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape of the noise that the sampling of one row starts from: (K, C)."""
        return self.config.action_seq_len, len(self.spec.continuous)

    @torch.no_grad()
    def condition(self, language: Float[Tensor, "I L"]) -> Float[Tensor, "I D"]:
        """The language token of each instruction's embedding."""
        return self.encoder.tokenizer.language_token(language)

    @torch.no_grad()
    def decide(self, scene: Scene) -> Acted:
        """Chunks [B K A] in action units: Euler steps from the scene's noise, and the classifier's -1 or +1.

        Raises UsageError where the scene brings no noise.
        """
        if scene.noise is None:
            raise UsageError(f"flow policy: expected noise [B, {', '.join(map(str, self.noise_shape))}], got none")
        tokens = self.encoder.tokenizer.assemble(scene.condition, scene.images, scene.robot_state)
        levels = self.flow.level_tokens(self.config.euler_steps)
        return self.sample(self.encode_tokens(tokens), scene.noise, levels)

    def matrices(self) -> Iterator[Tensor]:
        """Weights that bfloat16 may store: patch and context projections, and those of the Mamba blocks and MLPs.

        Norms, the scan's parameters, embeddings and the small outer layers are left out: they must stay exact.
        """
        for module in self.modules():
            if isinstance(module, MambaBlock):
                layer = module.mamba
                for matrix in (layer.in_proj, layer.x_proj, layer.out_proj):
                    yield from matrix.parameters()
                yield layer.dt_proj.weight
            elif isinstance(module, GatedMlp):
                for matrix in (module.gate, module.up, module.down):
                    yield from matrix.parameters()
        yield from self.encoder.tokenizer.vision.cameras.parameters()
        if self.flow.context is not None:
            yield from self.flow.context.parameters()

    @torch.no_grad()
    def act(self, obs: ObservationBatch, generator: torch.Generator) -> Float[Tensor, "B K A"]:
        """One chunk for each observation, in action units, noise from `generator`. Slow and plain: policies act through
        `statevla.policies.prepare.Actor`."""
        noise = draw_noise(len(obs.robot_state), self.config.action_seq_len, generator, obs.robot_state.device).epsilon
        return self.sample(self.encode(obs), noise, self.flow.level_tokens(self.config.euler_steps)).chunk

    @torch.no_grad()
    def sample(self, encoded: Encoded, noise: Float[Tensor, "B K C"], levels: Float[Tensor, "S D"]) -> Acted:
        """Chunks [B K A] in action units from states and starting noise. levels: `FlowPolicy.level_tokens`."""
        z, tokens = encoded
        pose = self.flow.sample(noise, z, tokens, levels)
        logits = self.gripper(z, tokens).float()
        standardized = torch.cat([pose, command(logits)], dim=-1)
        if not self._sorted:
            standardized = standardized.index_select(-1, self.places)
        return Acted(self.standardize_action.inverse(standardized), torch.sigmoid(logits))


def build(config: Config, given: Given) -> PolicyModel:
    """Fresh weights around the encoder of the parent's checkpoint; without a parent, all weights are fresh."""
    encoder = StateEncoder(config.model, given.statistics, given.backbone, given.spec)
    if given.parent is not None:
        load_strict(encoder, below(given.parent.tensors, "encoder."), f"{given.parent.folder / MODEL} (encoder.)")
    return PolicyModel(config, encoder, given.statistics)
