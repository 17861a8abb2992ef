"""An example's results do not depend on its batch, its place there, the number of threads, or what else runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import sparse_mixer

BATCHES = (1, 2, 3, 4, 7, 8, 16, 31)
THREADS = (1, 2, 3, 5, 8)
OTHER_CALLERS = 8
LENGTH = 96
OUTPUTS = ("sequence_output", "pooled_output")

Inputs = dict[str, np.ndarray]


# All kinds of layer, wide and long enough for blocks, slices, tiles and panels to be cut in several places.
ARGUMENTS: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_layers": 6,
    "moe_layers": (1, 2),
    "attention_layers": (3, 5),
    "num_experts": 8,
    "inner_dim": 1152,
    "num_attention_heads": 4,
    "max_sequence_length": LENGTH,
    "seed": 1,
}
MIXING: dict[str, dict[str, Any]] = {
    "Fourier by matrices": {"mixing_mechanism": "fourier"},
    "Hartley by fast transforms": {"mixing_mechanism": "hartley", "use_fft": True},
    "circulant, pre-norm": {"mixing_mechanism": "circulant", "norm_first": True},
    "tokens choose, paper's residuals": {"router": "tokens_choose", "moe_residual": True},
}


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    rng = np.random.default_rng(0)
    shape = (max(BATCHES), LENGTH)
    return {
        "input_word_ids": rng.integers(0, 1000, shape, dtype=np.int32),
        "input_mask": (rng.random(shape) < 0.9).astype(np.int32),
        "input_type_ids": rng.integers(0, 16, shape, dtype=np.int32),
    }


@contextmanager
def other_callers(encoder: sparse_mixer.SparseMixer, inputs: Inputs, group: int) -> Iterator[None]:
    """Threads that keep the machine and the encoder's scratch memory busy meanwhile, with calls of several sizes."""
    done = threading.Event()

    def call(number: int) -> None:
        while not done.is_set():
            encoder({name: rows[: group * (1 + number % 4 // group)] for name, rows in inputs.items()}, outputs=OUTPUTS)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(OTHER_CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        done.set()
        for caller in callers:
            caller.join()


def assert_bits(got: Any, wanted: Any, message: str) -> None:
    """Equality to the bit: zeros have signs, NaNs are no excuse."""
    np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32), err_msg=message)


def check(encoder: sparse_mixer.SparseMixer, inputs: Inputs, threads: Any, batches: Any, group: int = 1) -> None:
    """Calls on parts of `inputs`, whole groups of examples at other places of the batch, give the rows of one call."""
    encoder.num_threads = 1
    wanted = encoder(inputs, outputs=OUTPUTS)
    examples = len(inputs["input_word_ids"])
    with other_callers(encoder, inputs, group):
        for number in threads:
            encoder.num_threads = number
            for batch in batches:
                # Another place in the batch, and other batch mates, for most examples.
                first = (5 * batch) % (examples - batch + 1) // group * group
                rows = slice(first, first + batch)
                got = encoder({name: values[rows] for name, values in inputs.items()}, outputs=OUTPUTS)
                for name in OUTPUTS:
                    assert_bits(got[name], wanted[name][rows], f"{name}, {number} threads, examples {rows}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_batch_threads_and_company_do_not_change_a_bit(inputs: Inputs, dtype: str) -> None:
    check(sparse_mixer.SparseMixer(**ARGUMENTS, dtype=dtype), inputs, THREADS, BATCHES)


@pytest.mark.parametrize("isa", sparse_mixer.cpu_info()["available"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_on_every_instruction_set(inputs: Inputs, dtype: str, isa: str) -> None:
    small = ARGUMENTS | {"num_layers": 4, "inner_dim": 576, "moe_layers": (1,), "attention_layers": (2,)}
    few = {name: rows[:5] for name, rows in inputs.items()}
    check(sparse_mixer.SparseMixer(**small, dtype=dtype, isa=isa), few, (1, 3), (1, 2, 5))


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_kind_of_mixing(inputs: Inputs, dtype: str, mixing: str) -> None:
    check(sparse_mixer.SparseMixer(**(ARGUMENTS | MIXING[mixing]), dtype=dtype), inputs, (2, 3), (1, 4, 7))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_whole_groups_of_examples(inputs: Inputs, dtype: str) -> None:
    encoder = sparse_mixer.SparseMixer(**ARGUMENTS, examples_per_group=4, dtype=dtype)
    check(encoder, {name: rows[:20] for name, rows in inputs.items()}, (1, 2, 5), (4, 12), group=4)
