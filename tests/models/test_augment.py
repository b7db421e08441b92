import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from statevla.models.augment import Draws, augment, coloured, draw, shifted, turned


def pictures(rows: int = 4, side: int = 32) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, 2, side, side, 3), dtype=torch.uint8, generator=g)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_strength_zero_is_the_same_bytes() -> None:
    images = pictures()
    assert torch.equal(augment(images, draw(4, 2, 0.0, 0.0, generator())), images)


def test_equal_seeds_draw_alike_and_a_part_of_the_batch_is_a_part_of_the_draw() -> None:
    images = pictures()
    whole = augment(images, draw(4, 2, 4.0, 0.2, generator(3)))
    assert torch.equal(whole, augment(images, draw(4, 2, 4.0, 0.2, generator(3))))
    assert not torch.equal(whole, augment(images, draw(4, 2, 4.0, 0.2, generator(4))))
    part = draw(4, 2, 4.0, 0.2, generator(3)).rows(slice(1, 3))
    assert torch.equal(whole[1:3], augment(images[1:3], part))


def test_a_shift_moves_by_whole_pixels_and_repeats_the_edge() -> None:
    images = pictures(1)
    shift = torch.zeros(1, 2, 2)
    shift[0, 0, 0] = 3 / 32  # the first camera's rows
    moved = shifted(images, shift)
    assert torch.equal(moved[0, 0, :-3], images[0, 0, 3:])
    assert torch.equal(moved[0, 0, -3:], images[0, 0, -1:].expand(3, -1, -1))
    assert torch.equal(moved[0, 1], images[0, 1])
    shift = torch.zeros(1, 2, 2)
    shift[0, 1, 1] = -2 / 32  # the second camera's columns
    moved = shifted(images, shift)
    assert torch.equal(moved[0, 1, :, 2:], images[0, 1, :, :-2])
    assert torch.equal(moved[0, 1, :, :2], images[0, 1, :, :1].expand(-1, 2, -1))


def test_the_largest_shift_is_the_same_share_of_any_picture() -> None:
    draws = draw(1000, 2, 4.0, 0.0, generator())
    assert draws.shift.abs().max() <= 4 / 128
    assert (draws.shift * 128).round().unique().tolist() == list(range(-4, 5))
    assert (draws.shift * 64).round().unique().tolist() == list(range(-2, 3))


def test_colour_is_pils() -> None:
    images = pictures(1)
    factors = (0.9, 1.2, 0.8)
    ours = coloured(images, torch.tensor(factors).expand(1, 2, 3))[0, 0].numpy().astype(int)
    picture = Image.fromarray(images[0, 0].numpy())
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        picture = enhance(picture).enhance(factor)
    assert np.abs(ours - np.asarray(picture).astype(int)).max() <= 3  # PIL rounds after every step


def test_now_and_next_share_a_draw() -> None:
    images = pictures()
    draws = Draws(torch.full((4, 2, 2), 2 / 32), torch.full((4, 2, 3), 1.1), torch.zeros(4, 2, 4))
    now, later = augment(images, draws), augment(images.roll(1, dims=-2), draws)
    difference = now.roll(1, dims=-2)[..., 4:-4, :].int() - later[..., 4:-4, :].int()
    assert difference.abs().max() <= 1  # the mean grey sums the same pixels in another order


def test_nothing_turned_is_the_same_bytes_and_a_half_turn_is_a_half_turn() -> None:
    images = pictures()
    assert torch.equal(turned(images, torch.zeros(4, 2, 4)), images)
    half = torch.zeros(4, 2, 4)
    half[..., 0] = torch.pi
    assert (turned(images, half).int() - images.flip(2, 3).int()).abs().max() <= 1


def test_the_documents_affine_stays_in_its_ranges_and_changes_no_other_draw() -> None:
    plain, turning = (draw(2000, 2, 4.0, 0.2, generator(1), affine) for affine in (False, True))
    assert torch.equal(plain.shift, turning.shift)
    assert torch.equal(plain.colour, turning.colour)
    assert not plain.affine.any()
    largest = turning.affine.abs().amax(dim=(0, 1))
    assert largest.tolist() == pytest.approx([torch.pi / 36, 0.05, 0.05, 0.05], rel=0.01)


def test_a_shift_of_the_affine_moves_by_its_share() -> None:
    images, shift = pictures(), torch.zeros(4, 2, 4)
    shift[..., 1] = 2 / 32  # two columns: what was two to the right is now here
    assert torch.equal(turned(images, shift)[..., 2:, :], images[..., :-2, :])
