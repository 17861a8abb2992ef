"""Vector-Jacobian products: how often they may be used, and by how many threads."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from sparse_mixer import optimizers
from sparse_mixer.gradients import Gradients

ONES = {"pooled_output": np.ones((2, 16), np.float32)}


def assert_same(gradients: Any, expected: Any) -> None:
    assert list(gradients) == list(expected)
    for key in expected:
        np.testing.assert_array_equal(gradients[key], expected[key], err_msg=key)


def test_a_record_is_used_once() -> None:
    _, vjp = small_encoder().vjp(small_inputs(), seed=1)
    vjp(ONES)
    with pytest.raises(RuntimeError, match=r"vjp: it has been used, .*; pass persistent=True to encoder.vjp"):
        vjp(ONES)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_persistent_record_gives_the_same_bits_again(recompute: bool) -> None:
    encoder = small_encoder()
    once = encoder.vjp(small_inputs(), seed=1, recompute=recompute)[1](ONES)
    _, vjp = encoder.vjp(small_inputs(), seed=1, recompute=recompute, persistent=True)
    for _ in range(3):
        assert_same(vjp(ONES), once)


def test_wrong_arguments_do_not_use_a_record_up() -> None:
    encoder = small_encoder()
    expected = encoder.vjp(small_inputs(), seed=1)[1](ONES)
    _, vjp = encoder.vjp(small_inputs(), seed=1)
    wrong: list[Any] = [
        lambda: vjp({"pooled_output": np.ones((3, 16), np.float32)}),
        lambda: vjp({"pooled_output": np.full((2, 16), np.nan, np.float32)}),
        lambda: vjp({"rubbish": 1}),
        lambda: vjp(ONES, float("inf")),
        lambda: vjp(ONES, into=Gradients(small_encoder())),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match=r"output|aux_loss_weight|gradients"):
            call()
    assert_same(vjp(ONES), expected)


def test_the_call_that_was_made_is_differentiated_though_weights_have_changed() -> None:
    encoder = small_encoder()
    _, vjp = encoder.vjp(small_inputs(), seed=1)
    expected = encoder.vjp(small_inputs(), seed=1)[1](ONES)
    optimizers.SGD(1.0).apply_gradients(encoder, expected)
    changed = encoder.vjp(small_inputs(), seed=1)[1](ONES)
    assert not np.array_equal(changed["pooler_transform/kernel"], expected["pooler_transform/kernel"])
    assert_same(vjp(ONES), expected)


def test_one_of_many_threads_gets_the_gradients() -> None:
    encoder = small_encoder(num_threads=1)
    expected = encoder.vjp(small_inputs(), seed=1)[1](ONES)
    for _ in range(20):
        _, vjp = encoder.vjp(small_inputs(), seed=1)

        def use(_: int, vjp: Any = vjp) -> Any:
            with contextlib.suppress(RuntimeError):
                return vjp(ONES)

        with ThreadPoolExecutor(4) as pool:
            results = [result for result in pool.map(use, range(4)) if result is not None]
        assert len(results) == 1
        assert_same(results[0], expected)
