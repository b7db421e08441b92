"""The kernels of mamba-ssm and causal-conv1d behind the same call as ours; both packages must be installed.

Letters: B batch, L time steps, E inner channels, N states a channel, R rank of dt, K taps.

Their functions take channels before time, so activations are turned around once on the way in and once on the way out.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def inner(
    xz: Float[Tensor, "B L EE"],
    conv_weight: Float[Tensor, "E 1 K"],
    conv_bias: Float[Tensor, " E"],
    x_weight: Float[Tensor, "P E"],
    dt_weight: Float[Tensor, "E R"],
    dt_bias: Float[Tensor, " E"],
    a_log: Float[Tensor, "E N"],
    d: Float[Tensor, " E"],
) -> Float[Tensor, "B L E"]:
    """Everything between in_proj and out_proj. EE is 2 E, P is R + 2 N."""
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    x, z = xz.mT.contiguous().chunk(2, dim=1)
    u = causal_conv1d_fn(x, conv_weight[:, 0].to(x.dtype), conv_bias.to(x.dtype), activation="silu")
    rank, states = dt_weight.shape[1], a_log.shape[1]
    dt, b, c = torch.split(F.linear(u.mT, x_weight.to(u.dtype)), [rank, states, states], dim=-1)
    dt = F.linear(dt, dt_weight.to(u.dtype)).mT.contiguous()
    y: Tensor = selective_scan_fn(
        u,
        dt,
        -torch.exp(a_log.float()),
        b.mT.contiguous(),
        c.mT.contiguous(),
        d.float(),
        z=z,
        delta_bias=dt_bias.float(),
        delta_softplus=True,
    )
    return y.mT
