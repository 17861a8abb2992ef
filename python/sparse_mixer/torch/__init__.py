"""Sparse Mixer encoders as modules of PyTorch: `SparseMixer`, a `torch.nn.Module`. Needs the extra ``torch``."""

from __future__ import annotations

import importlib
from typing import Any

from sparse_mixer._core.extras import require

__all__ = ["SparseMixer"]


def __getattr__(name: str) -> Any:
    if name != "SparseMixer":
        raise AttributeError(f"module 'sparse_mixer.torch' has no attribute {name!r}")
    require("torch", "torch")
    return importlib.import_module("sparse_mixer.torch.module").SparseMixer
