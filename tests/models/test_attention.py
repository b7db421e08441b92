import torch
from torch import nn

from statevla.models.attention import Backbone, CrossLayer, grid_sinusoids, sinusoids


def test_a_backbone_is_norm_first_layers_and_a_final_norm() -> None:
    torch.manual_seed(0)
    backbone = Backbone(32, 4, 64, 2).eval()
    x = torch.randn(3, 5, 32)
    expected = x
    for layer in backbone.layers:
        attended = layer.self_attn(*[layer.norm1(expected)] * 3, need_weights=False)[0]
        expected = expected + attended
        expected = expected + layer.linear2(nn.functional.gelu(layer.linear1(layer.norm2(expected))))
    torch.testing.assert_close(backbone(x), backbone.norm(expected), rtol=1e-5, atol=1e-6)


def test_a_backbone_without_blocks_is_the_identity() -> None:
    x = torch.randn(1, 4, 8)
    assert torch.equal(Backbone(8, 2, 16, 0)(x), x)
    assert not list(Backbone(8, 2, 16, 0).parameters())


def test_ignored_tokens_change_no_other() -> None:
    torch.manual_seed(0)
    backbone = Backbone(16, 4, 32, 2)
    x = torch.randn(2, 6, 16)
    ignore = torch.zeros(2, 6, dtype=torch.bool)
    ignore[:, 4:] = True
    other = x.clone()
    other[:, 4:] += 10
    torch.testing.assert_close(backbone(x, ignore)[:, :4], backbone(other, ignore)[:, :4])
    torch.testing.assert_close(backbone(x, ignore)[:, :4], backbone(x[:, :4])[:, :4], rtol=1e-5, atol=1e-6)


def test_cross_attention_against_its_formula() -> None:
    torch.manual_seed(0)
    layer = CrossLayer(16, 4, 32).eval()
    query, memory = torch.randn(2, 3, 16), torch.randn(2, 7, 16)
    q, m = layer.norm_query(query), layer.norm_memory(memory)
    heads = layer.attention
    weight, bias = heads.in_proj_weight, heads.in_proj_bias
    parts = [
        (x @ w.T + b).unflatten(-1, (4, 4)).transpose(1, 2)
        for x, w, b in zip((q, m, m), weight.chunk(3), bias.chunk(3), strict=True)
    ]
    mixed = torch.softmax(parts[0] @ parts[1].transpose(-1, -2) / 2, dim=-1) @ parts[2]
    attended = query + heads.out_proj(mixed.transpose(1, 2).flatten(2))
    expected = attended + layer.mlp(layer.norm(attended))
    torch.testing.assert_close(layer(query, memory), expected, rtol=1e-5, atol=1e-6)


def test_sinusoids() -> None:
    position = sinusoids(5, 8)
    assert position.shape == (5, 8)
    assert torch.equal(position[0], torch.tensor([0.0, 1.0] * 4))
    torch.testing.assert_close(position[3, 0], torch.tensor(3.0).sin())
    grid = grid_sinusoids(3, 8)
    assert grid.shape == (9, 8)
    assert torch.equal(grid[3, :4], sinusoids(3, 4)[1])  # second row, first column
    assert torch.equal(grid[1, 4:], sinusoids(3, 4)[1])  # first row, second column
