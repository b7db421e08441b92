import math

import pytest
import torch

from statevla.models.heads import Bins, masked_l1, split_output
from stores.errors import UsageError

NAMES = ("x", "y")


def bins(count: int = 256) -> Bins:
    return Bins(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]), NAMES, count)


def test_more_padding_changes_no_mean() -> None:
    torch.manual_seed(0)
    predicted, wanted = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    keep = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    longer = [torch.cat([x, torch.full((2, 5, 3), 1e3)], dim=1) for x in (predicted, wanted * -1)]
    loss = masked_l1(predicted, -wanted, keep)
    padded = masked_l1(*longer, torch.cat([keep, torch.zeros(2, 5, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(loss, padded)
    expected = torch.cat([(predicted + wanted)[0, :3], (predicted + wanted)[1]]).abs().mean()
    torch.testing.assert_close(loss, expected)


def test_output_is_pose_and_gripper_step_by_step() -> None:
    flat = torch.arange(2 * 3 * 4.0).view(2, 12)
    pose, logits = split_output(flat, 3, 3)
    assert torch.equal(pose[0], torch.tensor([[0.0, 1, 2], [4, 5, 6], [8, 9, 10]]))
    assert torch.equal(logits[1], torch.tensor([[15.0], [19], [23]]))


def test_bins_cover_the_range_and_clip_outside() -> None:
    own = bins(4)
    values = torch.tensor([[-9.0, -9.0], [-1.0, 0.0], [-0.51, 1.0], [0.99, 3.99], [1.0, 4.0], [9.0, 9.0]])
    index = own.index(values)
    assert index.tolist() == [[0, 0], [0, 0], [0, 1], [3, 3], [3, 3], [3, 3]]
    assert own.value(index)[1].tolist() == [-0.75, 0.5]


def test_quantization_error_of_a_uniform_is_a_twelfth_of_a_bin_squared() -> None:
    torch.manual_seed(0)
    own = bins()
    values = torch.rand(200_000, 2) * (own.high - own.low) + own.low
    error = (own.value(own.index(values)) - values).square().mean(dim=0)
    width = (own.high - own.low) / 256
    torch.testing.assert_close(error, width.square() / 12, rtol=0.02, atol=0.0)


def test_equal_logits_cost_the_logarithm_of_the_bins() -> None:
    own = bins()
    pose = torch.rand(3, 5, 2)
    loss = own.loss(torch.zeros(3, 5, 2, 256), pose, torch.ones(3, 5, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(256), abs=1e-5)


def test_padded_steps_cost_nothing() -> None:
    torch.manual_seed(0)
    own, logits, pose = bins(8), torch.randn(2, 4, 2, 8), torch.rand(2, 4, 2)
    keep = torch.tensor([[True, True, False, False], [True, False, False, False]])
    changed = torch.where(keep[..., None, None], logits, 50 * torch.randn_like(logits))
    torch.testing.assert_close(own.loss(logits, pose, keep), own.loss(changed, pose, keep))


def test_a_dimension_that_never_moves_has_no_bins() -> None:
    with pytest.raises(UsageError, match=r"action dimension y never moves"):
        Bins(torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 0.5]), NAMES, 256)
