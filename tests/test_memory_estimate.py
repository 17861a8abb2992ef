"""`memory_estimate` beside the memory that the system counts; all combinations are in `tests/stress/test_memory.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoders import small_encoder
from memory_of_calls import USUAL, check_estimate


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("case", USUAL)
def test_a_call_takes_what_is_estimated(case: str) -> None:
    check_estimate(case)


def test_every_part_is_counted() -> None:
    """Weights, results and the inputs' copies, to the byte where nothing else changes."""
    encoder = small_encoder()
    assert encoder.weight_bytes >= 4 * encoder.count_params()
    assert encoder.weight_bytes < encoder.memory_estimate(0) < encoder.weight_bytes + (4 << 20)
    estimates = [encoder.memory_estimate(batch) for batch in (1, 8, 64)]
    assert sorted(estimates) == estimates
    config = encoder.get_config()
    width, length = config["hidden_size"], config["max_sequence_length"]
    both = encoder.memory_estimate(8, outputs=("encoder_outputs", "sequence_output"))
    assert both - encoder.memory_estimate(8, outputs=("encoder_outputs",)) == 8 * length * width * 4
