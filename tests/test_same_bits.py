"""An example's results do not depend on its batch, its place there, the number of threads, or what else runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import sparse_mixer

BATCHES = (1, 2, 3, 4, 7, 8, 16, 31)
THREADS = (1, 2, 3, 5, 8)
OTHER_CALLERS = 8
LENGTH = 96
OUTPUTS = ("sequence_output", "pooled_output")

Inputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def encoder() -> sparse_mixer.SparseMixer:
    """All kinds of layer, wide and long enough for blocks, tiles and panels to be cut in several places."""
    return sparse_mixer.SparseMixer(
        vocab_size=1000,
        hidden_size=128,
        num_layers=6,
        moe_layers=(1, 2),
        attention_layers=(3, 5),
        num_experts=8,
        inner_dim=256,
        num_attention_heads=4,
        max_sequence_length=LENGTH,
        seed=1,
    )


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    rng = np.random.default_rng(0)
    shape = (max(BATCHES), LENGTH)
    return {
        "input_word_ids": rng.integers(0, 1000, shape, dtype=np.int32),
        "input_mask": (rng.random(shape) < 0.9).astype(np.int32),
        "input_type_ids": rng.integers(0, 16, shape, dtype=np.int32),
    }


@pytest.fixture
def other_callers(encoder: sparse_mixer.SparseMixer, inputs: Inputs) -> Iterator[None]:
    """Threads that keep the machine and the encoder's scratch memory busy meanwhile."""
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            encoder({name: rows[:2] for name, rows in inputs.items()}, outputs=OUTPUTS)

    callers = [threading.Thread(target=call) for _ in range(OTHER_CALLERS)]
    for caller in callers:
        caller.start()
    yield
    done.set()
    for caller in callers:
        caller.join()


@pytest.mark.usefixtures("other_callers")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_batch_threads_and_company_do_not_change_a_bit(
    encoder: sparse_mixer.SparseMixer, inputs: Inputs, dtype: str
) -> None:
    ours = encoder.astype(dtype)
    ours.num_threads = 1
    wanted = ours(inputs, outputs=OUTPUTS)
    for threads in THREADS:
        ours.num_threads = threads
        for batch in BATCHES:
            # Another place in the batch, and other batch mates, for most examples.
            first = (5 * batch) % (max(BATCHES) - batch + 1)
            rows = slice(first, first + batch)
            got = ours({name: values[rows] for name, values in inputs.items()}, outputs=OUTPUTS)
            for name in OUTPUTS:
                np.testing.assert_array_equal(
                    got[name], wanted[name][rows], err_msg=f"{name}, {threads} threads, examples {rows}"
                )
