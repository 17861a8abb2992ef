"""Sparse Mixer encoders on CPUs: drop-in for TensorFlow Model Garden's ``networks.SparseMixer``, with a Rust core.

Importing starts no thread, prints nothing and needs numpy only. Submodules with optional dependencies are imported
when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparse_mixer import activations as activations
from sparse_mixer import checkpoints as checkpoints
from sparse_mixer import initializers as initializers
from sparse_mixer import layers as layers
from sparse_mixer import networks as networks
from sparse_mixer._core.seeds import set_random_seed as set_random_seed
from sparse_mixer._native import CheckpointError as CheckpointError
from sparse_mixer._native import InternalError as InternalError
from sparse_mixer._native import __version__ as __version__
from sparse_mixer._native import cpu_info as cpu_info
from sparse_mixer._native import get_num_threads as get_num_threads
from sparse_mixer._native import release_scratch as release_scratch
from sparse_mixer._native import set_num_threads as set_num_threads
from sparse_mixer.activations import Activation as Activation
from sparse_mixer.layers import MixingMechanism as MixingMechanism
from sparse_mixer.networks import SparseMixer as SparseMixer

if TYPE_CHECKING:
    from sparse_mixer.text import TextEncoder as TextEncoder

# Imported on first use: nothing of them is needed to encode.
_LAZY = frozenset(
    {
        "embeddings",
        "gradients",
        "keras",
        "layouts",
        "losses",
        "masking",
        "models",
        "optimizers",
        "plots",
        "ray",
        "schedules",
        "serve",
        "text",
        "training",
    }
)

__all__ = [
    "Activation",
    "CheckpointError",
    "InternalError",
    "MixingMechanism",
    "SparseMixer",
    "__version__",
    "activations",
    "checkpoints",
    "cpu_info",
    "get_num_threads",
    "initializers",
    "layers",
    "networks",
    "release_scratch",
    "set_num_threads",
    "set_random_seed",
]


def __getattr__(name: str) -> Any:
    if name == "TextEncoder":
        return importlib.import_module("sparse_mixer.text").TextEncoder
    if name in _LAZY:
        return importlib.import_module(f"sparse_mixer.{name}")
    raise AttributeError(f"module 'sparse_mixer' has no attribute {name!r}")


def __dir__() -> list[Any]:
    return sorted([*globals(), *_LAZY, "TextEncoder"])
