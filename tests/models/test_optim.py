"""Weight decay reaches matrices only."""

import torch

from statevla.models.encoder import StateEncoder
from statevla.models.optim import parameter_groups, undecayed_names
from statevla.systems.flow_matching import PolicyModel
from statevla.systems.temporal_jepa import JepaModel
from tests.models.build import micro

DECAYED = ("proj.weight", "conv1d.weight", "language.weight", "delta.weight")
UNDECAYED = ("norm.weight", ".bias", "A_log", ".D", "cls", "modality", "position_cameras", "position_robot")


def names(groups: list[dict], index: int) -> list[str]:
    return [name for name, _ in groups[index]["params"]]


def test_each_parameter_is_in_one_group_by_its_kind() -> None:
    model = JepaModel(micro("training.phase1.inverse_dynamics_weight=1.0"))
    groups = parameter_groups(model, 0.05, model.undecayed)
    decayed, spared = names(groups, 0), names(groups, 1)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(decayed + spared) == sorted(trained)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    for ending in DECAYED:
        assert [n for n in decayed if n.endswith(ending)]
        assert not [n for n in spared if n.endswith(ending)]
    for ending in UNDECAYED:
        assert [n for n in spared if n.endswith(ending)], ending
        assert not [n for n in decayed if n.endswith(ending)], ending
    shapes = dict(model.named_parameters())
    assert not [n for n in decayed if shapes[n].ndim < 2]


def test_frozen_parameters_are_left_out_and_an_optimizer_takes_the_groups() -> None:
    config = micro("model.policy_context=z+tokens", "model.policy_mlp=8")
    model = PolicyModel(config, StateEncoder(config.model))
    groups = parameter_groups(model, 0.05, model.undecayed)
    assert not [n for n in names(groups, 0) + names(groups, 1) if n.startswith("encoder.")]
    assert "flow.position" in names(groups, 1)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]


def test_what_a_new_model_adds_beside_layers_does_not_decay() -> None:
    class Added(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)
            self.words = torch.nn.Embedding(5, 3)
            self.queries = torch.nn.Parameter(torch.zeros(4, 3))
            self.look = torch.nn.MultiheadAttention(4, 2)

    decayed, spared = (names(parameter_groups(m, 0.1, undecayed_names(m)), i) for i, m in enumerate([Added()] * 2))
    assert sorted(decayed) == ["layer.weight", "look.in_proj_weight", "look.out_proj.weight"]
    assert {"words.weight", "queries", "layer.bias"} <= set(spared)
