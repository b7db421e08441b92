"""ACT on one vector, as its chapter has it, and with ResNet-18's trunk, as the original has it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from statevla.config import Config, load_config
from statevla.encoders.resnet import SIZES, make_resnet18
from statevla.evaluators.offline import evaluate_offline
from statevla.models.act import ActNet, VectorActNet
from statevla.models.stems import ResNetStem
from statevla.policies.policy import Policy
from statevla.systems.describe import describe_system
from statevla.systems.system import Given
from statevla.systems.table import find_system, sections
from statevla.trainers.command import TrainFlags, run_training
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.reader import Store
from stores.spec import LIBERO, ActionField, ObsSpec, StateField
from tests.models.build import normalization
from tests.systems.build import SMALL
from tests.trainers.micro import SETTINGS, micro_store
from tests.trainers.test_latents import no_pictures


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


ORIGINAL = {"width": 512, "heads": 8, "hidden": 3200, "chunk_blocks": 4, "blocks": 4, "latent": 32}
OTHERWISE = 512 * 512 + 512 + 512 + 2 * 512 + 2 * 1024 - 513
"""What ours has beside the original's: the instruction's layer and its kind, two cameras' embeddings, the final norms
of two encoders; but no head that foretells padding.
"""


def aloha() -> ObsSpec:
    """14 joints, and as many numbers of an action."""
    return dataclasses.replace(
        LIBERO, robot_state=(StateField("joints", 14, "rad"),), action=(ActionField("joints", 14, "continuous", "rad"),)
    )


@pytest.mark.parametrize(
    ("spec", "chunk", "decoder_blocks", "wanted"),
    [(aloha(), 100, 7, 83_932_687), (aloha(), 100, 1, 51_623_695), (LIBERO, 10, 1, 51_565_320)],
)
def test_the_originals_counts(spec: ObsSpec, chunk: int, decoder_blocks: int, wanted: int) -> None:
    with torch.device("meta"):
        trunk = make_resnet18(grouped=False)
        assert count(trunk) == count(make_resnet18(grouped=True)) == 11_176_512
        eyes = ResNetStem(trunk, 224, 512, 512)
        net = ActNet(size=224, stages=(), eyes=eyes, chunk=chunk, spec=spec, decoder_blocks=decoder_blocks, **ORIGINAL)
    assert count(net) == wanted + OTHERWISE
    if spec is LIBERO:
        found = describe_system(
            find_system("act"), load_config("original", None, ("act.decoder_blocks=1",), sections())
        )
        assert found["trainable"] == wanted + OTHERWISE


@pytest.mark.parametrize(
    ("spec", "numbers", "width", "chunk", "wanted"),
    [(LIBERO, 9, 512, 10, 29_799_047), (LIBERO, 14, 512, 100, 29_852_807), (LIBERO, 14, 256, 50, 7_508_103)],
)
def test_the_chapters_counts(spec: ObsSpec, numbers: int, width: int, chunk: int, wanted: int) -> None:
    with torch.device("meta"):
        net = VectorActNet(
            numbers, width=width, heads=8, hidden=4 * width, chunk_blocks=4, decoder_blocks=4, latent=32, chunk=chunk,
            spec=spec,
        )  # fmt: skip
    assert count(net) == wanted
    more = {"parent": 256, "siglip": 2 * 768}
    for vision, seen in more.items():
        sees = (f"act.vision={vision}", *(("model.vision=siglip",) if vision == "siglip" else ()))
        config = load_config("base", None, ("act.observation=vector", *sees), sections())
        added = seen + 9 + 512 - 9  # each number of the vector enters three layers of width 512
        assert describe_system(find_system("act"), config)["trainable"] == 29_799_047 + 3 * 512 * added


def test_a_vectors_latent_has_a_gaussian_told_by_what_is_seen_and_padding_is_hidden() -> None:
    torch.manual_seed(0)
    net = VectorActNet(
        5, width=16, heads=2, hidden=32, chunk_blocks=1, decoder_blocks=1, latent=3, chunk=10, spec=LIBERO
    )
    vector, chunk, is_pad = torch.randn(2, 5), torch.randn(2, 10, 7), torch.zeros(2, 10, dtype=torch.bool)
    is_pad[:, 4:] = True
    other = chunk.clone()
    other[:, 4:] = 99
    torch.testing.assert_close(net.posterior(vector, chunk, is_pad)[0], net.posterior(vector, other, is_pad)[0])
    assert not torch.allclose(net.posterior(vector, chunk, is_pad)[0], net.posterior(vector, chunk + 1, is_pad)[0])
    assert not torch.allclose(net.prior(vector)[0], net.prior(vector + 1)[0])
    latent = torch.randn(2, 3)
    read = net.read(vector, latent)
    assert not torch.allclose(read, net.read(vector, latent + 1))
    assert not torch.allclose(read, net.read(vector + 1, latent))
    hidden = net.prior_layers[0](vector).relu()
    expected = net.prior_layers[4](net.prior_layers[2](hidden).relu())
    torch.testing.assert_close(net.prior(vector)[0], expected[:, :3])


def save_resnet(folder: Path, **other: object) -> Path:
    """Random weights of a ResNet-18 that names pictures, with statistics of its own, as the hub's are."""
    torch.manual_seed(7)
    net = ResNetForImageClassification(ResNetConfig(**{**SIZES, **other}))
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    net.save_pretrained(folder)
    return folder


def resnet_settings(*more: str) -> Config:
    sees = ("act.vision=resnet18", "act.image_size=32", "training.max_steps=2")
    return load_config("tiny", None, (*SETTINGS, *sees, *more), sections())


def test_training_begins_with_released_weights_whose_statistics_stay(tmp_path: Path) -> None:
    store, released = micro_store(tmp_path / "store"), save_resnet(tmp_path / "resnet")
    config = resnet_settings(f"act.resnet_model={released}")
    begun = find_system("act").build(config, Given(statistics=normalization()))
    wanted = load_file(released / "model.safetensors")
    trunk = begun.net.stem.trunk
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, wanted[f"resnet.{name}"]), name
    images = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8)
    begun.train()
    whole, alone = begun.net.stem(images), begun.net.stem(images[:1])
    torch.testing.assert_close(whole[:1], alone)
    pixels = torch.nn.functional.interpolate(
        images.permute(0, 3, 1, 2) / 255, size=(32, 32), mode="bilinear", antialias=True, align_corners=False
    )
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    model = ResNetForImageClassification.from_pretrained(released).resnet.eval()
    seen = begun.net.stem.out(model(pixel_values=pixels).last_hidden_state).flatten(2).transpose(1, 2)
    torch.testing.assert_close(whole, seen, rtol=1e-4, atol=1e-4)

    train("act", config, store, tmp_path / "run")
    latest = tmp_path / "run/checkpoints/act/checkpoint_latest"
    for file in released.iterdir():
        file.unlink()
    policy = Policy.load(latest)
    after = policy.model.net.stem.trunk.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, wanted[f"resnet.{name}"])]
    assert any("convolution.weight" in name for name in changed), "the trunk learns"
    assert not [name for name in changed if "running" in name or "num_batches" in name], "its statistics do not"


def test_what_is_no_resnet18(tmp_path: Path) -> None:
    def begin(model: str) -> None:
        find_system("act").build(resnet_settings(f"act.resnet_model={model}"), Given(statistics=normalization()))

    with pytest.raises(
        UsageError, match=r"act.resnet_model: no usable weights of a ResNet-18 at .*depths.*\[2, 2, 2, 2\]"
    ):
        begin(str(save_resnet(tmp_path / "deep", depths=[1, 1, 1, 1])))
    folder = save_resnet(tmp_path / "cut")
    tensors = load_file(folder / "model.safetensors")
    del tensors["resnet.encoder.stages.1.layers.0.layer.0.convolution.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"it lacks weights \['encoder.stages.1"):
        begin(str(folder))
    with pytest.raises(UsageError, match=r"act.image_size: 40 is not a multiple of 32, by which a ResNet shrinks it"):
        find_system("act").build(resnet_settings("act.image_size=40"), Given(statistics=normalization()))


@pytest.mark.parametrize(("changes", "said"), [
    (("act.observation=vector",), r"act.vision: conv gives no act.observation=vector; expected one of parent, siglip"),
    (("act.vision=parent",), r"act.vision: parent gives no act.observation=images; expected one of conv, resnet18"),
    (("act.observation=vector", "act.vision=dinov2"), "act.vision: dinov2, but model.vision is conv"),
    (("act.resnet_model=x",), r"act.resnet_model: .*act.vision=resnet18"),
    (("act.observation=vector", "act.vision=parent", "act.blocks=2"), r"act.blocks: .*act.observation=images"),
])  # fmt: skip
def test_what_does_not_go_together(tmp_path: Path, changes: tuple[str, ...], said: str) -> None:
    store = micro_store(tmp_path / "store")
    small = tuple(text for text in SETTINGS if not text.startswith(("model.", "training.phase")))
    flags = TrainFlags(
        system="act", store=str(store), preset="tiny", overrides=(*small, "training.max_steps=1", *changes),
        run=tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(UsageError, match=said):
        run_training(flags, [].append)


WORLD = ("act.world_target=motion", "act.world_horizon=2")
"""Its targets come of kept states too."""


@pytest.mark.parametrize(("encoder", "world"), [("temporal_jepa", ()), ("temporal_jepa", WORLD), ("stamo", ())])
def test_a_vector_of_states_is_trained_from_kept_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, world: tuple[str, ...]
) -> None:
    """The same losses as from pictures; the policy's checkpoint holds the encoder."""
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, *SMALL, "training.max_steps=3"), sections())
    train(encoder, config, store, tmp_path / "encoder")
    found = tmp_path / "encoder/checkpoints" / find_system(encoder).folder / "checkpoint_latest"
    sees = ("act.observation=vector", "act.vision=parent", f"act.encoder={encoder}", "act.prior=learned", *world)

    def losses(run: str, *more: str) -> list[float]:
        config = load_config("tiny", None, (*SETTINGS, *SMALL, "training.max_steps=3", *sees, *more), sections())
        train("act", config, store, tmp_path / run, encoder_checkpoint=found)
        return [json.loads(line)["loss"] for line in (tmp_path / run / "metrics_act.jsonl").read_text().splitlines()]

    online = losses("online", "data.latents=false")
    with monkeypatch.context() as blind:
        losses("first")
        no_pictures(blind)
        np.testing.assert_allclose(losses("kept"), online, rtol=1e-4)
    shutil.rmtree(tmp_path / "encoder")
    policies = [Policy.load(tmp_path / run / "checkpoints/act/checkpoint_latest") for run in ("kept", "online")]
    scores = [evaluate_offline(policy, Store.open(store)).mse_normalized for policy in policies]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
