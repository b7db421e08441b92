"""Checkpoints of earlier formats, brought to this one step by step: the number is read first, then what it means.

A migration says what the earlier format meant by leaving something out, with the values of then; today's defaults are
never filled in. A change of `CheckpointState` or of the configuration's keys raises `FORMAT` and adds a step here.

    1  phases by number, the keys of the configuration before they were the documents'
    2  systems by name
    3  initial states of the demonstrations
    4  the observation's spec as data; stores by their content
    5  which states VICReg's terms take
    6  what is precomputed: features, latents
    7  accumulation, averages of policies, augmentation, oversampling, trackers
    8  decoded pictures
    9  the weight of the prediction's error
    10 how shards are read
    11 further objectives of Temporal JEPA
    12 encoders for policies, few labels, StaMo's features and painters
    13 how patches are made, of vla and goal
    14 how often labelled steps are drawn
    15 how patches are made, of encoders
    16 a world head of the flow-matching policy
    17 motions on the way as what it foretells
    18 latent actions
    19 adapters of StaMo's pretrained painter
    20 how demonstrations were made; by which tower film, act and vla see
    21 ACT on one vector, ResNet-18, the instruction in ACT's queries; by which tower goal sees
    22 the instruction in the readouts of vla
    23 how StaMo's levels of noise are drawn
"""

import copy
from collections.abc import Callable
from typing import Any, Final

from stores.errors import StoreCorrupt

FORMAT: Final = 24
Tree = dict[str, Any]


def migrate(tree: Tree, where: str) -> Tree:
    """`tree`, a state.json of any known format, as one of `FORMAT`. Raises StoreCorrupt for an unknown format."""
    number = tree.get("format")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise StoreCorrupt(f"{where}: expected a format number from 1 to {FORMAT}, got {number!r}")
    if number > FORMAT:
        raise StoreCorrupt(
            f"{where}: checkpoint of format {number}, written by statevla {tree.get('code_version', '(unknown)')}; "
            f"this one reads formats up to {FORMAT}; use a newer statevla"
        )
    for step in range(number, FORMAT):
        try:
            tree = {**MIGRATIONS[step](tree), "format": step + 1}
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreCorrupt(f"{where}: not a whole checkpoint of format {step}: {error!r} is missing") from error
    return tree


def _systems_by_name(old: Tree) -> Tree:
    """1 to 2."""
    tree = dict(old)
    names = {1: "temporal_jepa", 2: "flow_matching"}
    tree["system"] = names[tree.pop("phase")]
    parent = tree.pop("encoder")
    tree["parent"] = None if parent is None else {"system": "temporal_jepa", **parent}
    tree["config"] = _documents_keys(tree["config"])
    return tree


def _initial_states(old: Tree) -> Tree:
    """2 to 3: nothing was recorded of them."""
    return {**old, "init_states": {}}


def _spec_as_data(old: Tree) -> Tree:
    """3 to 4: there was one robot, LIBERO's. A store was known by its manifest's hash, which none has any more: the
    policy acts, and is refused wherever it must be told that a store is the one it was trained on.
    """
    tree = dict(old)
    spec, loader = tree.pop("obs_spec"), dict(tree.pop("loader"))
    tree["content_hash"] = tree.pop("manifest_hash")
    loader["content_hash"] = loader.pop("manifest_hash")
    if spec:
        height, width = spec["image_size"]
        units = "[-1, 1] controller units"
        spec = {
            "cameras": [{"name": name, "height": height, "width": width} for name in spec["cameras"]],
            "robot_state": [
                {"name": "joint_pos", "width": 7, "unit": "rad"},
                {"name": "gripper_qpos", "width": 2, "unit": "m"},
            ],
            "action": [
                {"name": "position", "width": 3, "kind": "continuous", "unit": f"OSC_POSE delta, {units}",
                 "dims": ["x", "y", "z"]},
                {"name": "rotation", "width": 3, "kind": "continuous", "unit": f"OSC_POSE delta axis-angle, {units}",
                 "dims": ["rx", "ry", "rz"]},
                {"name": "gripper", "width": 1, "kind": "binary", "unit": "-1 open, +1 close", "dims": []},
            ],
            "control_hz": spec["control_hz"],
            "language_width": 512,
            "orientation": spec["orientation"],
        }  # fmt: skip
    return {**tree, "obs_spec": spec, "loader": loader}


def _regularized_states(old: Tree) -> Tree:
    """4 to 5: predictions were the only ones."""
    tree = copy.deepcopy(old)
    tree["config"]["training"]["phase1"]["regularize"] = "z_next"
    return tree


def _precomputed(old: Tree) -> Tree:
    """5 to 6: every picture was encoded again in every epoch, and patches were as the tower gives them."""
    config = dict(old["config"])
    config["data"] = {**config["data"], "features": None, "latents": False}
    config["model"] = {**config["model"], "vision_pool": 1}
    return {**old, "config": config}


def _decoded_pictures(old: Tree) -> Tree:
    """7 to 8: pictures were kept in memory only."""
    config = dict(old["config"])
    return {**old, "config": {**config, "data": {**config["data"], "cache": "memory"}}}


def _training_options(old: Tree) -> Tree:
    """6 to 7: there was none of them."""
    tree = copy.deepcopy(old)
    tree["config"]["data"]["oversample_gripper"] = 1
    tree["config"]["training"] |= {
        "accumulate": 1, "policy_ema": 0.0, "augment_shift": 0.0, "augment_colour": 0.0, "augment_affine": False,
        "tracker": "none",
    }  # fmt: skip
    return tree


def _weight_of_prediction(old: Tree) -> Tree:
    """8 to 9: it was 1."""
    tree = copy.deepcopy(old)
    tree["config"]["training"]["phase1"]["prediction_weight"] = 1.0
    return tree


def _reading_from_afar(old: Tree) -> Tree:
    """9 to 10: segments by the index, and of a remote store nothing was kept."""
    tree = copy.deepcopy(old)
    tree["config"]["data"] |= {
        "stream": "indexed", "shuffle_buffer": 4096, "remote_cache": None, "remote_cache_gib": None,
        "remote_requests": 32,
    }  # fmt: skip
    return tree


def _further_objectives(old: Tree) -> Tree:
    """10 to 11: VICReg alone, and the next observation."""
    tree = copy.deepcopy(old)
    tree["config"]["training"]["phase1"] |= {"sigreg_weight": 0.0, "gap": 1}
    return tree


NO_WORLD: Final[Tree] = {
    "world_target": "none", "world_weight": 0.1, "world_horizon": None, "world_shuffled": False,
}  # fmt: skip
STAMO_ADDED: Final[Tree] = {
    "features": "conv", "decoder": "pixel", "vae_steps": 2000,
    "sd3_model": "stabilityai/stable-diffusion-3-medium-diffusers", "sd3_revision": None,
    "motion_weight": 0.0, "motion_steps": 5, "motion_threshold": 0.08,
}  # fmt: skip
"""Keys of ``stamo`` since 12, as it was before."""


def _further_options_of_systems(old: Tree) -> Tree:
    """11 to 12: policies that regress a chunk took no encoder, and foretold no state; all actions were seen; StaMo's
    features were a stem's, whose width was called so.
    """
    tree = copy.deepcopy(old)
    tree["config"]["data"] |= {"labelled_share": 1.0, "unlabelled": "leave_out"}
    for name in ("film", "act", "vla", "goal"):
        if name in tree["config"]:
            tree["config"][name] |= {"encoder": "temporal_jepa", **NO_WORLD}
    if "stamo" in tree["config"]:
        _rename(tree["config"]["stamo"], features="stem_width")
        tree["config"]["stamo"] |= STAMO_ADDED
    return tree


def _stems(old: Tree) -> Tree:
    """12 to 13: one convolution a patch."""
    tree = copy.deepcopy(old)
    for name in ("vla", "goal"):
        if name in tree["config"]:
            tree["config"][name]["stem"] = "patch"
    return tree


def _labels_as_often(old: Tree) -> Tree:
    """13 to 14: a labelled step was drawn as often as any other."""
    tree = copy.deepcopy(old)
    tree["config"]["data"]["labelled_times"] = 1
    return tree


def _patches_of_encoders(old: Tree) -> Tree:
    """14 to 15: one convolution a patch in the encoder, too."""
    tree = copy.deepcopy(old)
    tree["config"]["model"]["stem"] = "patch"
    return tree


def _world_of_flow(old: Tree) -> Tree:
    """15 to 16: the flow-matching policy foretold no state."""
    tree = copy.deepcopy(old)
    tree["config"]["training"]["phase2"] |= NO_WORLD
    return tree


def _motions(old: Tree) -> Tree:
    """16 to 17: no head foretold motions, of which a few components would do."""
    tree = copy.deepcopy(old)
    for options in _with_world(tree["config"]):
        options["world_components"] = 0
    return tree


def _latent_actions(old: Tree) -> Tree:
    """17 to 18: no latent action was learned, of whatever width."""
    tree = copy.deepcopy(old)
    for options in _with_world(tree["config"]):
        options["world_code"] = 16
    return tree


def _adapters(old: Tree) -> Tree:
    """18 to 19: all of a pretrained painter was trained."""
    tree = copy.deepcopy(old)
    if "stamo" in tree["config"]:
        tree["config"]["stamo"]["sd3_lora"] = 0
    return tree


def _made_by(old: Tree) -> Tree:
    """19 to 20: it was not kept how the demonstrations were made, and no policy saw by a frozen tower itself."""
    tree = {**copy.deepcopy(old), "made_by": {}}
    for name in ("film", "act", "vla"):
        if name in tree["config"]:
            tree["config"][name]["vision"] = "conv"
    return tree


def _one_vector(old: Tree) -> Tree:
    """20 to 21: ACT saw pictures place by place, by no ResNet; a goal policy by no tower."""
    tree = copy.deepcopy(old)
    if "goal" in tree["config"]:
        tree["config"]["goal"]["vision"] = "conv"
    if "act" in tree["config"]:
        tree["config"]["act"] |= {"observation": "images", "resnet_model": None, "instruction": "memory"}
    return tree


def _told_readouts(old: Tree) -> Tree:
    """21 to 22: the readouts of a vision-language-action transformer were not told the instruction."""
    tree = copy.deepcopy(old)
    if "vla" in tree["config"]:
        tree["config"]["vla"]["instruction"] = "token"
    return tree


def _noise_levels(old: Tree) -> Tree:
    """22 to 23: levels of noise were drawn uniformly."""
    tree = copy.deepcopy(old)
    if "stamo" in tree["config"]:
        tree["config"]["stamo"]["levels"] = "uniform"
    return tree


def _seen_cameras(old: Tree) -> Tree:
    """23 to 24: pictures of every camera were compressed."""
    tree = copy.deepcopy(old)
    if "stamo" in tree["config"]:
        tree["config"]["stamo"]["cameras"] = None
    return tree


def _with_world(config: Tree) -> list[Tree]:
    """Options of the systems that may have a world head."""
    named = [config[name] for name in ("film", "act", "vla", "goal") if name in config]
    return [config["training"]["phase2"], *named]


def _documents_keys(old: Tree) -> Tree:
    data, model, training = dict(old["data"]), dict(old["model"]), dict(old["training"])
    first, second = dict(training["phase1"]), dict(training["phase2"])
    _rename(model, width="embed_dim", depth="encoder_depth", chunk="action_seq_len", policy_depth="policy_layers")
    _rename(training, grad_clip="gradient_clip", save_every_epochs="save_interval", log_every_steps="log_interval")
    for phase in (first, second):
        _rename(phase, epochs="num_epochs", lr="learning_rate")
    first["temporal_predictor_hidden_dim"] = model.pop("predictor_width")
    training |= {
        "ema_momentum": first.pop("ema_start"), "ema_momentum_schedule": "cosine", "learning_rate": 1e-4,
        "phase1": first, "phase2": second,
    }  # fmt: skip
    data |= {"data_directory": None, "demos_per_task": 50, "max_len_data": 260, "train_split": 0.9}
    restated = ("lang_emb_dim", "robot_state_dim", "action_dim", "state_dim", "policy_embed_dim")
    model |= dict.fromkeys(restated)
    return {"data": data, "model": model, "training": training}


def _rename(tree: Tree, **names: str) -> None:
    for old, new in names.items():
        tree[new] = tree.pop(old)


MIGRATIONS: Final[dict[int, Callable[[Tree], Tree]]] = {
    1: _systems_by_name,
    2: _initial_states,
    3: _spec_as_data,
    4: _regularized_states,
    5: _precomputed,
    6: _training_options,
    7: _decoded_pictures,
    8: _weight_of_prediction,
    9: _reading_from_afar,
    10: _further_objectives,
    11: _further_options_of_systems,
    12: _stems,
    13: _labels_as_often,
    14: _patches_of_encoders,
    15: _world_of_flow,
    16: _motions,
    17: _latent_actions,
    18: _adapters,
    19: _made_by,
    20: _one_vector,
    21: _told_readouts,
    22: _noise_levels,
    23: _seen_cameras,
}
"""From the format of the key to the next one."""
