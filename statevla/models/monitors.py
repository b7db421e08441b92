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
