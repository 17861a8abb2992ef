"""What `vjp` gives as `encoder_outputs` unless it is told what to give."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from encoders import WIDTH, small_encoder, small_inputs

ONES = {"pooled_output": np.ones((2, WIDTH), np.float32)}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "usual": ({}, {}),
    "output range": ({"output_range": 3}, {}),
    "recompute": ({}, {"recompute": True}),
    "one block": ({"num_layers": 1, "moe_layers": (), "attention_layers": (0,)}, {}),
    "without pooler": ({"with_pooler": False}, {}),
    "some weights": ({}, {"wrt": ["transformer/layer_2/output/bias"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_a_call(case: str) -> None:
    arguments, options = CASES[case]
    encoder = small_encoder(**arguments)
    expected = encoder(small_inputs(), training=True, seed=3)
    outputs, _ = encoder.vjp(small_inputs(), seed=3, **options)
    assert list(outputs) == list(expected)
    blocks = outputs["encoder_outputs"]
    assert len(blocks) == len(expected["encoder_outputs"])
    for one, other in zip(blocks, expected["encoder_outputs"], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(blocks[-1], outputs["sequence_output"])
    assert blocks[-1] is blocks[len(blocks) - 1], "what is read is the reader's"
    assert not np.shares_memory(blocks[-1], outputs["sequence_output"])
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_writing_to_them_changes_no_gradient() -> None:
    encoder = small_encoder()
    expected = encoder.vjp(small_inputs(), seed=3)[1](ONES)
    outputs, vjp = encoder.vjp(small_inputs(), seed=3)
    for block in outputs["encoder_outputs"]:
        block[:] = 7.0
    found = vjp(ONES)
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    assert all((block == 7.0).all() for block in outputs["encoder_outputs"]), "all of them had been read"


def test_those_that_nobody_has_read_go_with_the_record() -> None:
    encoder = small_encoder()
    outputs, vjp = encoder.vjp(small_inputs(), seed=3)
    first, *_ = outputs["encoder_outputs"][:1]
    vjp(ONES)
    assert outputs["encoder_outputs"][0] is first
    with pytest.raises(
        RuntimeError, match=r"encoder_outputs: what the forward pass kept was released when vjp was called"
    ):
        outputs["encoder_outputs"][1]
    # A persistent record has them, and named they are arrays.
    outputs, vjp = encoder.vjp(small_inputs(), seed=3, persistent=True)
    named, other = encoder.vjp(small_inputs(), seed=3, outputs=["encoder_outputs"])
    vjp(ONES)
    other(ONES)
    assert isinstance(named["encoder_outputs"], list)
    for one, other_block in zip(outputs["encoder_outputs"], named["encoder_outputs"], strict=True):
        np.testing.assert_array_equal(one, other_block)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_lists_of_arrays(way: Any) -> None:
    outputs, vjp = small_encoder().vjp(small_inputs(), seed=3)
    blocks = outputs["encoder_outputs"]
    assert repr(blocks) == "<outputs of 3 blocks>"
    twin = way(blocks)
    vjp(ONES)
    assert isinstance(twin, list)
    for one, other in zip(twin, blocks, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.stack(blocks).shape == (3, 2, 8, WIDTH)
