"""Configurations and optimiser states of the paper's JAX code in terms of ours.

Source: ``sparse_mixers`` in ``google-research/google-research``: keys and defaults of its configuration, and the tree
of its training state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_mixer import layouts
from sparse_mixer._core.checks import as_int
from sparse_mixer._native import CheckpointError
from sparse_mixer.checkpoints.weight_files import Array, ArrayMapping, Floats, TargetWeights, WeightFile

# Adam's state is the first of a chain; clipping of gradients stands before it and adds a level.
_ADAM_STATE = re.compile(r"(opt_state/(?:\d+/){1,2})mu/")
# The JAX code's names of the moments, and ours.
_MOMENTS = {"mu": "m", "nu": "v"}

# Weights of heads: the end of our key, the JAX code's path, and whether its matrix is the transpose of ours.
_HEADS = [
    ("transform/dense/kernel", "predictions_dense/kernel", False),
    ("transform/dense/bias", "predictions_dense/bias", False),
    ("transform/LayerNorm/gamma", "predictions_layer_norm/scale", False),
    ("transform/LayerNorm/beta", "predictions_layer_norm/bias", False),
    ("output_bias/bias", "predictions_output/output_bias", False),
    ("logits/kernel", "classification/output_kernel", True),
    ("logits/bias", "classification/output_bias", False),
]

# Keys that are ours under another name, with the JAX code's defaults.
_RENAMED: dict[str, tuple[str, Any]] = {
    "d_emb": ("embedding_width", 512),
    "d_model": ("hidden_size", 512),
    "d_ff": ("inner_dim", 2048),
    "num_layers": ("num_layers", 14),
    "num_heads": ("num_attention_heads", 8),
    "max_seq_length": ("max_sequence_length", 512),
    "type_vocab_size": ("type_vocab_size", 4),
    "dropout_rate": ("output_dropout", 0.1),
    "mixing_dropout_rate": ("attention_dropout", 0.1),
    "expert_dropout_rate": ("expert_dropout", 0.1),
    "use_fft": ("use_fft", False),
    "expert_d_ff": ("expert_inner_dim", 2048),
    "max_group_size": ("max_group_size", 4096),
    "train_capacity_factor": ("train_capacity_factor", 1.0),
    "eval_capacity_factor": ("eval_capacity_factor", 1.0),
    "min_expert_capacity": ("min_expert_capacity", 4),
    "num_selected_experts": ("num_selected_experts", 1),
    "batch_prioritized_routing": ("batch_prioritized_routing", True),
    "auxiliary_loss_factor": ("auxiliary_loss_factor", 0.01),
    "router_z_loss_factor": ("router_z_loss_weight", 0.0001),
    "jitter_noise": ("jitter_noise", 0.0),
    # No key of the JAX code, which always rounds to bfloat16 here; taken where a configuration has it.
    "router_dtype": ("router_dtype", "float32"),
}
# Keys whose meaning is worked out below, with the JAX code's defaults.
_RESOLVED: dict[str, Any] = {
    "model_arch": "LINEAR",
    "vocab_size": None,
    "pad_id": None,
    "num_experts": 16,
    "moe_layout": "MIDDLE",
    "num_moe_layers": 4,
    "attention_layout": "TOP",
    "num_attention_layers": 4,
    "dispatch_algorithm": "MASK_EXPERTS_CHOOSE",
}
_MIXING = {
    # With attention in every layer nothing is mixed otherwise.
    "bert": "linear",
    "f_net": "fourier",
    "h_net": "hartley",
    "linear": "linear",
    "c_net": "circulant",
    "t_net": "toeplitz",
}
# Masks or scattered indices: two ways to compute the same.
_ROUTERS = {
    "mask_experts_choose": "experts_choose",
    "mask_tokens_choose": "tokens_choose",
    "scatter_tokens_choose": "tokens_choose",
}


def read_flax_config(config: Mapping[str, Any], vocab_size: int | None) -> tuple[dict[str, Any], list[str]]:
    """The constructor's arguments for a configuration of the JAX code.

    Args:
        config: Keys of the JAX code; missing ones have its defaults.
        vocab_size: Rows of the word table, used where `config` does not say.

    Returns:
        The arguments, and the keys of `config` that have no part in them.

    Raises:
        ValueError: An unknown name, a missing ``vocab_size`` or ``pad_id``, or a layout that does not fit.
        TypeError: A value of a wrong type.
    """
    config = _as_mapping(config)
    values = {**_RESOLVED, **config}
    arguments = {ours: config.get(theirs, default) for theirs, (ours, default) in _RENAMED.items()}
    architecture = _name(values, "model_arch", _MIXING)
    router = _ROUTERS[_name(values, "dispatch_algorithm", _ROUTERS)]
    num_layers = as_int("config: num_layers", arguments["num_layers"])
    attention: Sequence[int] = ()
    moe: Sequence[int] = ()
    if architecture == "bert":
        attention = range(num_layers)
    elif values["num_attention_layers"]:
        attention = _layers(values, "attention", num_layers)
    if values["num_experts"] and values["num_moe_layers"]:
        moe = _layers(values, "moe", num_layers)
    if values["vocab_size"] is None and vocab_size is None:
        raise ValueError("config: 'vocab_size' is missing, and there is no word table that has it")
    if attention and values["pad_id"] is None:
        raise ValueError(
            "config: 'pad_id' is missing, the id of the tokenizer's padding piece; attention depends on it "
            "(-1 where there is no padding)"
        )
    arguments |= {
        "semantics": "paper",
        "vocab_size": vocab_size if values["vocab_size"] is None else values["vocab_size"],
        "pad_id": values["pad_id"],
        "mixing_mechanism": _MIXING[architecture],
        "attention_layers": attention,
        "moe_layers": moe,
        # A model without experts says 0.
        "num_experts": values["num_experts"] or 1,
        "router": router,
    }
    if router == "experts_choose":
        # The JAX code looks at it only where tokens choose.
        arguments["num_selected_experts"] = 1
    ignored = sorted(str(key) for key in config if key not in _RENAMED and key not in _RESOLVED)
    return arguments, ignored


def read_adam_state(file: WeightFile, targets: TargetWeights) -> tuple[int, dict[str, Floats]]:
    """Adam's number of updates and moments of the `targets` weights in a training state.

    Args:
        file: A checkpoint with ``opt_state``.
        targets: Names and shapes of the weights, ours.

    Returns:
        What `Optimizer.set_state` takes.

    Raises:
        CheckpointError: There is no such state, or it is of other weights.
    """
    places = {name: index for index, (name, _, _) in enumerate(file.entries())}
    roots = {match.group(1) for name in places if (match := _ADAM_STATE.match(name))}
    if len(roots) != 1 or f"{min(roots)}count" not in places:
        raise CheckpointError(f"{file.path}: there is no state of an Adam optimiser")
    root = roots.pop()
    moments = {}
    for theirs, ours in _MOMENTS.items():
        below = f"{root}{theirs}/"
        arrays = ArrayMapping(
            {name.removeprefix(below): file.read(index) for name, index in places.items() if name.startswith(below)}
        )
        plan = arrays.plan(targets, None)
        if len(plan.reads) != len(targets):
            raise CheckpointError(f"{file.path}: the moments below {below} are not those of this encoder's weights")
        for index, entry, swap, first in plan.reads:
            name, shape = targets[index]
            moments[f"{name}/{ours}"] = arrays.weight(entry, swap, first, shape)
    return int(file.read(places[f"{root}count"])), moments


def read_heads(file: WeightFile, keys: Sequence[str]) -> list[Array]:
    """The weights of heads in a checkpoint, in our layout.

    Args:
        file: The checkpoint.
        keys: Our keys of the weights.

    Raises:
        CheckpointError: One is missing, or of a kind that the JAX code does not have.
    """
    paths: dict[str, tuple[str, bool]] = {}
    for key in keys:
        found = [(theirs, transposed) for ours, theirs, transposed in _HEADS if key.endswith(f"/{ours}")]
        if not found or found[0] in paths.values():
            raise CheckpointError(f"{file.path}: the JAX code has no weight like {key}")
        paths[key] = found[0]
    # Below "params", or at the top; the optimiser's moments have the same names further down.
    places = {name.removeprefix("params/"): index for index, (name, _, _) in enumerate(file.entries())}
    missing = [path for path, _ in paths.values() if path not in places]
    if missing:
        raise CheckpointError(f"{file.path}: missing: {', '.join(missing)}")
    arrays = [(file.read(places[path]), transposed) for path, transposed in paths.values()]
    return [np.ascontiguousarray(array.T) if transposed else array for array, transposed in arrays]


def _as_mapping(config: Any) -> Mapping[str, Any]:
    """`config` itself, or the content of an object like a mapping, such as ``ml_collections.ConfigDict``."""
    if isinstance(config, Mapping):
        return config
    if callable(getattr(config, "keys", None)) and callable(getattr(config, "items", None)):
        return dict(config.items())
    raise TypeError(f"config: expected a mapping of the JAX code's keys, got {type(config).__name__}")


def _layers(values: Mapping[str, Any], kind: str, num_layers: int) -> tuple[int, ...]:
    layout = values[f"{kind}_layout"]
    return layouts.layer_indices(getattr(layout, "name", layout), num_layers, values[f"num_{kind}_layers"])


def _name(values: Mapping[str, Any], key: str, known: Mapping[str, str]) -> str:
    """The value of `key`, a name in any case or a member of the JAX code's enumeration, as a key of `known`."""
    value = getattr(values[key], "name", values[key])
    if not isinstance(value, str) or value.lower() not in known:
        names = ", ".join(repr(name.upper()) for name in known)
        raise ValueError(f"config: {key}: got {value!r}, expected one of {names}")
    return value.lower()
