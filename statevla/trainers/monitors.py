"""Numbers that show a collapse of the state before the loss does.

Legend: B rows, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def rank_me(z: Float[Tensor, "B D"]) -> float:
    """Effective rank: exp of the entropy of the normalized singular values, 1 ... min(B, D) (Garrido et al. 2023).

    Of the states as they are, not centred; 1 means that all states lie on one line through the origin.
    """
    singular = torch.linalg.svdvals(z.detach().double().cpu())
    share = singular / singular.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def mean_deviation(z: Float[Tensor, "B D"]) -> float:
    """Standard deviation over rows (B - 1), averaged over dimensions: about 1 is healthy, 0 is collapse."""
    return float(z.detach().double().cpu().std(dim=0).mean()) if len(z) > 1 else 0.0
