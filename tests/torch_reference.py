"""PyTorch for the tests: skipped without it, except with SPARSE_MIXER_REQUIRE_TORCH=1, as in `make test`."""

from __future__ import annotations

import os

import pytest

try:
    import torch
except ImportError as error:
    if os.environ.get("SPARSE_MIXER_REQUIRE_TORCH") == "1":
        raise
    pytest.skip(f"needs PyTorch: {error}", allow_module_level=True)

__all__ = ["torch"]
