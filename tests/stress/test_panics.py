"""Bugs in the core, which a build for tests makes on request (`make test-checked`), are ordinary exceptions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import _native

pytestmark = pytest.mark.skipif(
    not hasattr(_native, "inject_panic"), reason="a release cannot be made to panic; see `make test-checked`"
)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_panic_anywhere_is_an_internal_error(threads: int, capfd: Any) -> None:
    encoder, inputs = small_encoder(num_threads=threads, mixing_mechanism="fourier"), small_inputs()
    expected = encoder(inputs)
    d_outputs = {"sequence_output": np.ones_like(expected["sequence_output"])}
    gradients = encoder.vjp(inputs, seed=1)[1](d_outputs)
    tasks: list[int] = []
    messages: set[str] = set()
    for differentiable in (False, True):
        for task in range(1000):
            _native.inject_panic(task)
            try:
                if differentiable:
                    encoder.vjp(inputs, seed=1)[1](d_outputs)
                else:
                    encoder(inputs)
            except sparse_mixer.InternalError as error:
                messages.add(str(error).partition(";")[0])
            else:
                tasks.append(task)
                break
            finally:
                _native.inject_panic(None)
            assert_same_outputs(encoder(inputs), expected)
    assert messages == {"internal error: injected"}
    again = encoder.vjp(inputs, seed=1)[1](d_outputs)
    for key in gradients:
        np.testing.assert_array_equal(again[key], gradients[key])
    assert min(tasks) > 5
    capfd.readouterr()  # Rust's own words about each panic
