"""Sparse Mixer encoders in scikit-learn, as a transformer and as a classifier. Needs the extra ``sklearn``."""

from __future__ import annotations

import importlib
from typing import Any

from sparse_mixer._core.extras import require

_MODULES = {"SparseMixerFeatures": "features", "SparseMixerClassifier": "classifier"}

__all__ = ["SparseMixerClassifier", "SparseMixerFeatures"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sparse_mixer.sklearn' has no attribute {name!r}")
    require("sklearn", "sklearn")
    return getattr(importlib.import_module(f"sparse_mixer.sklearn.{_MODULES[name]}"), name)
