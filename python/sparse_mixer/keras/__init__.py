"""Sparse Mixer encoders as Keras layers, for tf_keras (Keras 2) and Keras 3.

``sparse_mixer.keras.SparseMixer`` is the layer of the Keras that the program uses: tf_keras if that has been imported
(``tensorflow_models`` imports it), else Keras 3. `layer_class` makes the choice by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

FRAMEWORKS = {"tf_keras": "sparse_mixer.keras.tf_keras_layer", "keras": "sparse_mixer.keras.keras_layer"}

__all__ = ["SparseMixer", "layer_class"]


def layer_class(framework: str | None = None) -> Any:
    """The class `SparseMixer` for one Keras.

    Args:
        framework: ``"tf_keras"`` or ``"keras"`` (Keras 3, with the backend that it is set to). None chooses: tf_keras
            if it has been imported or ``TF_USE_LEGACY_KERAS=1`` is set; else Keras 3 if that has been imported; else
            whichever is installed, tf_keras first.

    Raises:
        ValueError: An unknown name.
        ImportError: It is not installed.
    """
    chosen = _in_use() if framework is None else framework
    if chosen not in FRAMEWORKS:
        raise ValueError(f"framework: got {framework!r}, expected one of {', '.join(map(repr, FRAMEWORKS))}, or None")
    return importlib.import_module(FRAMEWORKS[chosen]).SparseMixer


def _in_use() -> str:
    if "tf_keras" in sys.modules or os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True"):
        return "tf_keras"
    if "keras" in sys.modules:
        return "keras"
    for name in FRAMEWORKS:
        if importlib.util.find_spec(name) is not None:
            return name
    raise ImportError(
        "sparse_mixer.keras needs tf_keras with TensorFlow, or Keras 3 with TensorFlow, JAX or PyTorch; for example "
        "pip install sparse_mixer[keras]"
    )


def __getattr__(name: str) -> Any:
    if name == "SparseMixer":
        return layer_class()
    raise AttributeError(f"module 'sparse_mixer.keras' has no attribute {name!r}")
