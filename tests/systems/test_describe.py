"""The parameters of every system, as its preset makes it: the numbers of the systems' specification."""

from pathlib import Path

import pytest

from statevla.config import load_config
from statevla.systems.describe import describe, describe_system
from statevla.systems.system import System
from statevla.systems.table import SYSTEMS, find_system, sections
from stores.errors import UsageError
from tests.commands import one_object

PHASES = ("temporal_jepa", "flow_matching")
COUNTS = [
    ("temporal_jepa", "tiny", (), 134_720 + 233_280),
    ("temporal_jepa", "small", (), 2_006_976 + 595_776),
    ("temporal_jepa", "base", (), 695_552 + 5_256_960 + 66_304 + 1_056_512),
    ("flow_matching", "tiny", (), 83_718 + 8_970),
    ("flow_matching", "small", (), 963_654 + 76_042),
    ("flow_matching", "base", (), 1_805_062 + 134_154),
    ("flow_matching", "original", (), 2_395_654 + 134_154),
    ("film", "tiny", (), 191_590),
    ("film", "small", (), 2_625_030),
    ("act", "tiny", (), 232_791),
    ("act", "tiny", ("act.prior=learned",), 271_399),
    ("act", "small", (), 7_471_431),
    ("act", "small", ("act.prior=learned",), 7_687_303),
    ("vla", "tiny", ("vla.head=continuous",), 229_766),
    ("vla", "tiny", ("vla.fusion=cross_attention",), 326_535),
    ("vla", "tiny", ("vla.fusion=perceiver",), 277_447),
    ("vla", "tiny", ("vla.head=discrete",), 1_224_266),
    ("vla", "small", ("vla.head=continuous",), 4_068_550),
    ("vla", "small", ("vla.fusion=cross_attention",), 4_948_807),
    ("vla", "small", ("vla.fusion=perceiver",), 4_506_631),
    ("vla", "small", ("vla.head=discrete",), 7_021_450),
    ("vla", "base", ("vla.head=continuous",), 130_523_206),
    ("vla", "base", ("vla.fusion=cross_attention",), 144_661_255),
    ("vla", "base", ("vla.fusion=perceiver", "vla.queries=16"), 137_584_135),
    ("vla", "base", ("vla.fusion=perceiver",), 137_584_135 + 16 * 768),
    ("vla", "base", ("vla.head=discrete",), 142_288_906),
    ("goal", "tiny", ("goal.fusion=late",), 179_718),
    ("goal", "small", ("goal.fusion=late",), 3_178_630),
    ("vla", "tiny", ("vla.stem=conv",), 226_311 + 2 * (27_968 - 12_352)),
    ("vla", "small", ("vla.stem=conv",), 4_058_311 + 2 * (256_512 - 147_648)),
    ("goal", "tiny", ("goal.stem=conv",), 204_294 + 2 * (28_400 - 24_640)),
    ("goal", "small", ("goal.stem=conv",), 3_473_542 + 2 * (257_160 - 295_104)),
    ("stamo", "tiny", (), 438_464 + 1_352_512 + 256 + 118_464),
    ("stamo", "small", (), 3_390_464 + 10_092_992 + 512 + 470_400),
    ("stamo", "tiny", ("stamo.motion_weight=1",), 438_464 + 1_352_512 + 256 + 118_464),
]
PAPER = (
    "stamo.features=dinov2", "model.vision=dinov2", "model.vision_model=facebook/dinov2-base", "model.patch_size=14",
    "stamo.width=1024", "stamo.depth=4", "stamo.state_width=1024", "stamo.heads=16",
)  # fmt: skip
"""StaMo's compressor over the features of a ViT-B."""


@pytest.mark.parametrize(("name", "preset", "changes", "wanted"), COUNTS)
def test_counts(name: str, preset: str, changes: tuple[str, ...], wanted: int) -> None:
    config = load_config(preset, None, changes, sections())
    found = describe_system(find_system(name), config)
    assert found["trainable"] == sum(found["parts"].values()) == wanted
    encoder = describe_system(find_system("temporal_jepa"), config)["parts"]["encoder"]
    assert found["frozen"] == (encoder if name in PHASES else 0)  # its moving average, and the one that a policy holds


@pytest.mark.parametrize("row", SYSTEMS, ids=[row.name for row in SYSTEMS])
def test_every_system_is_counted(row: System) -> None:
    assert {preset for name, preset, _, _ in COUNTS if name == row.name} >= {"tiny", "small"}


def test_stamo_over_frozen_features_at_the_papers_size() -> None:
    found = describe_system(find_system("stamo"), load_config("base", None, PAPER, sections()))
    assert found["parts"]["compressor"] == 52_490_240
    assert "stem" not in found["parts"]


@pytest.mark.parametrize("row", SYSTEMS, ids=[row.name for row in SYSTEMS])
@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_every_system_can_be_described(row: System, preset: str) -> None:
    assert describe_system(row, load_config(preset, None, (), sections()))["trainable"] > 0


def test_the_phases_add_up_to_the_whole() -> None:
    config = load_config("base", None, (), sections())
    alone = [describe_system(find_system(name), config) for name in ("temporal_jepa", "flow_matching")]
    assert sum(each["trainable"] for each in alone) == describe(config)["trainable"]
    assert alone[1]["frozen"] == alone[0]["parts"]["encoder"]


@pytest.mark.parametrize(("name", "preset", "wanted"), [
    ("film", "tiny", "preset tiny"), ("film", "small", "preset small"), ("act", "small", "preset small"),
    ("act", "base", "preset base"), ("act", "original", "preset original"),
    ("goal", "original", "preset original, of which goal has no sizes: those of small"),
    ("stamo", "base", "preset base, of which stamo has no sizes: those of small"),
    ("vla", "base", "preset base"), ("flow_matching", "original", "preset original"),
])  # fmt: skip
def test_what_is_shown_is_what_the_title_says(name: str, preset: str, wanted: str) -> None:
    row = find_system(name)
    assert row.shown_as(preset) == wanted
    small, own = (
        describe_system(row, load_config(which, None, (), sections()))["trainable"] for which in ("small", preset)
    )
    assert (small == own) == (preset == "small" or "of small" in wanted)


def test_an_unknown_preset_says_which_there_are() -> None:
    with pytest.raises(UsageError, match=r"preset 'document': expected one of base, original, small, tiny"):
        load_config("document", None, (), sections())


def test_the_command(tmp_path: Path) -> None:
    told = one_object(tmp_path, "describe", "--system", "film", "--preset", "tiny")
    assert told["trainable"] == 191_590
    assert told["system"] == "film"
