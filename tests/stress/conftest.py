"""Numbers of the stress tests: few for every run of the suite, those of ``docs/reliability.md`` with `make stress`.

The environment variable ``SPARSE_MIXER_STRESS`` chooses: ``full``, or nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sparse_mixer

FULL = os.environ.get("SPARSE_MIXER_STRESS", "") == "full"


@pytest.fixture(scope="session")
def scaled() -> Callable[[Any, Any], Any]:
    """A function that chooses between a number for every run and one for a full run."""
    return lambda usual, full: full if FULL else usual


@pytest.fixture
def report(record_property: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Prints figures that a full run is made for, past pytest's capture."""

    def show(**figures: Any) -> None:
        for name, value in figures.items():
            record_property(name, value)
        if FULL:
            with capsys.disabled():
                print("\n   ", ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in figures.items()))

    return show


@pytest.fixture(scope="session")
def large() -> tuple[sparse_mixer.SparseMixer, dict[str, Any]]:
    """The Base model in a full run, else one of a tenth of its size; and a batch that takes more than half a second."""
    arguments: dict[str, Any] = (
        {} if FULL else {"num_layers": 4, "num_experts": 4, "moe_layers": (1,), "inner_dim": 1024}
    )
    encoder = sparse_mixer.SparseMixer(30522 if FULL else 5000, seed=0, **arguments)
    batch = 1
    while True:
        ids = np.tile(np.arange(512, dtype=np.int32), (batch, 1))
        inputs = {"input_word_ids": ids, "input_mask": np.ones_like(ids), "input_type_ids": ids % 2}
        start = time.perf_counter()
        encoder(inputs, outputs=("pooled_output",))
        if time.perf_counter() - start > 0.5:
            return encoder, inputs
        batch *= 2
