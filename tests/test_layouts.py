"""Layouts against the table of the paper's code."""

from __future__ import annotations

from typing import Any

import pytest
import sparse_mixer
from sparse_mixer import layouts


@pytest.mark.parametrize(
    ("layout", "layers", "count", "expected"),
    [
        ("bottom", 14, 4, (0, 1, 2, 3)),
        ("middle", 14, 4, (5, 6, 7, 8)),
        ("mixed", 14, 4, (0, 3, 6, 9, 12)),
        ("top", 14, 4, (10, 11, 12, 13)),
        ("BOTTOM", 8, 4, (0, 1, 2, 3)),
        ("MIDDLE", 8, 4, (2, 3, 4, 5)),
        ("MIXED", 8, 4, (0, 2, 4, 6)),
        ("TOP", 8, 4, (4, 5, 6, 7)),
        ("middle", 4, 1, (2,)),
        ("middle", 5, 2, (2, 3)),
        ("top", 3, 7, (0, 1, 2)),
        ("bottom", 3, 0, ()),
        ("mixed", 3, 0, ()),
        ("middle", 3, 0, ()),
        ("top", 3, 0, ()),
        ("mixed", 5, 5, (0, 1, 2, 3, 4)),
    ],
)
def test_layers(layout: str, layers: int, count: int, expected: tuple[int, ...]) -> None:
    assert layouts.layer_indices(layout, layers, count) == expected


def test_defaults_of_the_encoder_are_the_base_models() -> None:
    encoder = sparse_mixer.SparseMixer(10, hidden_size=8, inner_dim=8, max_sequence_length=4)
    assert encoder.arguments.moe_layers == layouts.middle(14, 4)
    assert encoder.arguments.attention_layers == layouts.top(14, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("diagonal", 4, 1), ValueError, "layout: got 'diagonal'"),
        ((1, 4, 1), TypeError, "layout: expected a string"),
        (("mixed", 4, 5), ValueError, "count: got 5, expected at most num_layers"),
        (("top", 0, 1), ValueError, "num_layers: got 0"),
        (("top", 4, -1), ValueError, "count: got -1"),
        (("top", 4.0, 1), TypeError, "num_layers: expected an integer"),
    ],
)
def test_errors(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layouts.layer_indices(*arguments)
