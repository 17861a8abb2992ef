"""Published configurations by name. A preset is a configuration: weights come from a file that the user has.

Sources: the Sparse Mixer paper (https://arxiv.org/abs/2205.12399) and its released JAX models; for ``fnet_base`` the
FNet paper (https://arxiv.org/abs/2105.03824). Sequence length 512, four type ids, a vocabulary of 32,000 pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_mixer import layouts

_COMMON: dict[str, Any] = {
    "semantics": "paper",
    "vocab_size": 32000,
    "max_sequence_length": 512,
    "type_vocab_size": 4,
}
_FAST = {"train_capacity_factor": 0.5, "eval_capacity_factor": 0.5}


def _sparse_mixer(num_layers: int) -> dict[str, Any]:
    return {
        **_COMMON,
        "hidden_size": 512,
        "inner_dim": 2048,
        "num_layers": num_layers,
        "num_attention_heads": 8,
        "num_experts": 16,
        "moe_layers": layouts.middle(num_layers, 4),
        "attention_layers": layouts.top(num_layers, 4),
        "mixing_mechanism": "linear",
    }


def _base_size(mixing: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {"hidden_size": 768, "inner_dim": 3072, "num_layers": 12, "num_attention_heads": 12, "moe_layers": ()}
    return {**_COMMON, **sizes, **mixing}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "sparse_mixer_base": _sparse_mixer(14),
    "fast_sparse_mixer_base": {**_sparse_mixer(14), **_FAST},
    "sparse_mixer_small": _sparse_mixer(8),
    "fast_sparse_mixer_small": {**_sparse_mixer(8), **_FAST},
    "bert_base": _base_size({"attention_layers": tuple(range(12))}),
    "fnet_base": _base_size({"attention_layers": (), "mixing_mechanism": "fourier"}),
}


def preset(name: str) -> Mapping[str, Any]:
    """The constructor's arguments of the preset `name`.

    Raises:
        ValueError: There is no such preset.
        TypeError: `name` is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected the name of a preset, got {name!r} ({type(name).__name__})")
    if name not in PRESETS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(map(repr, PRESETS))}")
    return PRESETS[name]


def note(name: str) -> str:
    """What the summary says of the weights of an encoder that was made from the preset `name` alone."""
    return (
        f"Preset {name!r} is a configuration without weights: they start at random, and pretrained ones come from a "
        "file that you have (weights=path, or load_weights)"
    )
