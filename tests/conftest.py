"""Settings that all tests share. Loaders and tolerances are modules of their own: `golden_cases`, `closeness`."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

# The same examples in every run, so that a failure is one of the change and not of luck; profile "search" looks for
# new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", max_examples=1000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


SEED = 20220525

# PyTorch's compiler for GPUs brings an LLVM of its own, which ends the process where TensorFlow's is loaded.
sys.modules["triton"] = None  # type: ignore[assignment]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What frameworks draw is the same in every run: a weight that routes a token by a tie fails always or never."""
    random.seed(SEED)
    if (tensorflow := sys.modules.get("tensorflow")) is not None:
        tensorflow.random.set_seed(SEED)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(SEED)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Ctrl-C as usual, although a shell that starts the tests in its background lets them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def config() -> dict[str, Any]:
    """Arguments of the encoder in ``golden/checkpoints``."""
    arguments: dict[str, Any] = json.loads(
        (Path(__file__).parent / "golden" / "checkpoints" / "config.json").read_text()
    )
    return arguments


@pytest.fixture
def no_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing TensorFlow or JAX fails, as where they are not installed."""
    for module in ["tensorflow", "tf_keras", "keras", "jax", "flax", "torch", "transformers"]:
        monkeypatch.setitem(sys.modules, module, None)
