"""The Keras 3 layer learns the same with every backend. Each backend needs a process of its own."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BACKENDS = ("tensorflow", "jax", "torch")


@functools.cache
def report(backend: str) -> dict[str, Any]:
    """What the program of this test prints with a backend."""
    for module in ("keras", backend):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    program = Path(__file__).with_name("keras3_losses.py")
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_computes_learns_and_is_saved(backend: str) -> None:
    result = report(backend)
    assert result["backend"] == backend
    assert result["distance"] < 1e-6
    assert result["losses"][-1] < result["losses"][0] - 0.005
    assert result["saved"]
    assert result["back"]


def test_backends_give_equal_losses() -> None:
    reference = report("tensorflow")
    for backend in BACKENDS:
        np.testing.assert_allclose(report(backend)["losses"], reference["losses"], rtol=0, atol=1e-6, err_msg=backend)
        assert report(backend)["weights"] == reference["weights"]
