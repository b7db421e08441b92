"""Numbers that show what a loss does not: a state that collapses, a predictor blind to actions, a gripper never moved.

Legend: B rows, D width, K chunk, G binary dimensions.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def rank_me(z: Float[Tensor, "B D"]) -> float:
    """Effective rank: exp of the entropy of the normalized singular values, 1 ... min(B, D) (Garrido et al. 2023).

    Of the states as they are, not centred; 1 means that all states lie on one line through the origin.
    """
    singular = torch.linalg.svdvals(z.detach().double().cpu())
    share = singular / singular.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def correlation_excess(z: Float[Tensor, "B D"]) -> float:
    """Σ_{i≠j} r_ij² / D of the correlations between dimensions, less (D − 1) / (B − 1), what independent ones show in B
    rows by chance: 0 is decorrelated, D − 1 all dimensions alike. Dimensions that never vary count as uncorrelated.
    """
    rows, width = z.shape
    centred = z.detach().double() - z.detach().double().mean(dim=0)
    unit = centred / centred.norm(dim=0).clamp(min=1e-12)
    correlation = unit.T @ unit
    off = correlation.square().sum() - correlation.diagonal().square().sum()
    return float(off / width - (width - 1) / max(rows - 1, 1))


def within_episodes(z: Float[Tensor, "B D"], episode: Int64[Tensor, " B"]) -> float:
    """Share of the variance of states that lies within episodes: near 0, states tell episodes apart and little else."""
    values = z.detach().double()
    _, place, counts = torch.unique(episode, return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, place, values)
    within = (values - (sums / counts[:, None])[place]).square().sum()
    whole = (values - values.mean(dim=0)).square().sum()
    return float(within / whole.clamp(min=1e-12))


def change_f1(closes: Bool[Tensor, "B K G"], wanted: Bool[Tensor, "B K G"], keep: Bool[Tensor, "B K"]) -> float | None:
    """F1 of the changes of a binary command between neighbouring steps that are no padding, at the exact step and in
    the right direction; None where there are none to find and none were foretold.
    """
    valid = keep[:, 1:, None]
    changed = (closes[:, 1:] != closes[:, :-1]) & valid
    due = (wanted[:, 1:] != wanted[:, :-1]) & valid
    total = int(changed.sum() + due.sum())
    found = changed & due & (closes[:, 1:] == wanted[:, 1:])
    return None if total == 0 else 2 * int(found.sum()) / total


def change_monitor(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """``gripper_change_f1`` of a policy's ``logits``, ``closing`` and ``keep``; nothing where no command changes."""
    found = change_f1(terms["logits"] > 0, terms["closing"], terms["keep"])
    return {} if found is None else {"gripper_change_f1": found}
