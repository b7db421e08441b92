"""The fused operator of mamba-ssm behind the same call as ours; it and causal-conv1d must be installed.

Letters: B batch, L time steps, D width, E inner channels, N states a channel, R rank of dt, K taps.

Their function takes channels before time and goes on to the layer's output. It keeps neither the convolution's output
nor dt for the backward pass: both are computed again there.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def layer(
    xz: Float[Tensor, "B L EE"],
    conv_weight: Float[Tensor, "E 1 K"],
    conv_bias: Float[Tensor, " E"],
    x_weight: Float[Tensor, "P E"],
    dt_weight: Float[Tensor, "E R"],
    dt_bias: Float[Tensor, " E"],
    a_log: Float[Tensor, "E N"],
    d: Float[Tensor, " E"],
    out_weight: Float[Tensor, "D E"],
) -> Float[Tensor, "B L D"]:
    """Everything after in_proj, out_proj included. EE is 2 E, P is R + 2 N."""
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

    out: Tensor = mamba_inner_fn(
        xz.mT.contiguous(),
        conv_weight.to(xz.dtype),
        conv_bias.to(xz.dtype),
        x_weight.to(xz.dtype),
        dt_weight.to(xz.dtype),
        out_weight.to(xz.dtype),
        None,
        -torch.exp(a_log.float()),
        D=d.float(),
        delta_bias=dt_bias.float(),
        delta_softplus=True,
    )
    return out
