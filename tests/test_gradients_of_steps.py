"""Loops that make new gradients in every step: the memory of those that were applied goes to the next ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from encoders import WIDTH, small_encoder, small_inputs
from sparse_mixer import models, optimizers
from sparse_mixer._core.seeds import Purpose, derived_seed
from sparse_mixer.gradients import Gradients

KEY = "pooler_transform/bias"
ONES = {"pooled_output": np.ones((2, WIDTH), np.float32)}


def gradients_of(encoder: Any, seed: int = 1, **options: Any) -> Gradients:
    found: Gradients = encoder.vjp(small_inputs(seed=seed), seed=seed, **options)[1](ONES)
    return found


def applied(encoder: Any, seed: int = 1) -> Gradients:
    gradients = gradients_of(encoder, seed)
    optimizers.SGD(0.1).apply_gradients(encoder, gradients)
    return gradients


def assert_same(one: Any, other: Any) -> None:
    assert list(one) == list(other)
    for key in other:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def assert_passed_on(gradients: Gradients) -> None:
    with pytest.raises(RuntimeError, match="gradients: they have been applied, and the gradients computed after that"):
        gradients[KEY]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loop_over_a_model_gives_the_bits_of_fit(dtype: str) -> None:
    inputs, labels = small_inputs(20), np.arange(20) % 2
    fitted, looped = (models.BertClassifier(small_encoder(dtype=dtype), 2, seed=3) for _ in range(2))
    fitted.fit(
        (inputs, labels), optimizer=optimizers.AdamW(1e-2, global_clipnorm=1.0), batch_size=4, shuffle=False, seed=9,
        progress=False,
    )  # fmt: skip
    optimizer, norms = optimizers.AdamW(1e-2, global_clipnorm=1.0), []
    for step in range(5):
        rows = slice(4 * step, 4 * step + 4)
        batch = ({name: array[rows] for name, array in inputs.items()}, labels[rows])
        _, gradients = looped.loss_and_gradients(batch, seed=derived_seed(Purpose.BATCH, 9, step, 0))
        norm = optimizer.apply_gradients(looped, gradients)
        # Until the next step they can be read.
        norms.append((norm, gradients.global_norm()))
    np.testing.assert_allclose(*np.transpose(norms), rtol=1e-6)
    for one, other in zip(fitted.weights, looped.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.key)


def test_a_loop_over_an_encoder_gives_the_bits_of_gradients_that_are_cleared() -> None:
    """Also where what is reached, or wanted, changes from step to step."""
    plain, cleared = small_encoder(), small_encoder()
    one, other, kept = optimizers.AdamW(1e-2), optimizers.AdamW(1e-2), Gradients(cleared)
    sequence = {"sequence_output": np.full((2, 8, WIDTH), 0.1, np.float32)}
    wanted: list[Any] = [None, None, [KEY], None, ["word_embeddings/embeddings"], None]
    for step, wrt in enumerate(wanted):
        d_outputs = ONES if step % 2 == 0 else sequence
        gradients = plain.vjp(small_inputs(seed=step), seed=step, wrt=wrt)[1](d_outputs)
        one.apply_gradients(plain, gradients)
        kept.clear()
        cleared.vjp(small_inputs(seed=step), seed=step, wrt=wrt)[1](d_outputs, into=kept)
        assert_same(gradients, {key: kept[key] for key in gradients})
        other.apply_gradients(cleared, {key: kept[key] for key in gradients} if wrt else kept)
    for a, b in zip(plain.get_weights(), cleared.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


READINGS: dict[str, Callable[[Any, Gradients], Any]] = {
    "an entry": lambda encoder, old: old[KEY],
    "all": lambda encoder, old: dict(old),
    "norm": lambda encoder, old: old.global_norm(),
    "copy": lambda encoder, old: old.copy(),
    "deep copy": lambda encoder, old: copy.deepcopy(old),
    "pickle": lambda encoder, old: pickle.dumps(old),
    "set": lambda encoder, old: old.set(KEY, np.zeros(WIDTH)),
    "add": lambda encoder, old: encoder.vjp(small_inputs(), seed=5)[1](ONES, into=old),
    "update": lambda encoder, old: optimizers.SGD(0.1).apply_gradients(encoder, old),
}


@pytest.mark.parametrize("reading", READINGS)
def test_gradients_that_were_applied_are_refused_when_later_ones_have_their_memory(reading: str) -> None:
    encoder = small_encoder()
    old = applied(encoder)
    new = gradients_of(encoder, 2)
    expected, weights = dict(new), encoder.get_weights()
    with pytest.raises(RuntimeError, match=r"gradients: they have been applied, .* kept = gradients\.copy\(\)"):
        READINGS[reading](encoder, old)
    assert_same(new, expected)
    assert len(old) == len(new)
    assert KEY in old
    for one, other in zip(encoder.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_refused_call_uses_nothing_up() -> None:
    encoder = small_encoder()
    old = applied(encoder)
    expected = dict(old)
    _, vjp = encoder.vjp(small_inputs(), seed=2)
    for d_outputs in (
        {"pooled_output": np.ones((3, WIDTH))},
        {"rubbish": 1},
        {"pooled_output": np.full((2, WIDTH), np.nan)},
    ):
        with pytest.raises(ValueError, match="output"):
            vjp(d_outputs)
    assert_same(old, expected)
    later = encoder.vjp(small_inputs(seed=4), seed=3)[1]
    vjp(ONES)
    # And gradients that cannot be added to leave the record as it is.
    with pytest.raises(RuntimeError, match="gradients: they have been applied"):
        later(ONES, into=old)
    later(ONES)


def test_cleared_they_are_zeros_that_can_be_added_to() -> None:
    encoder = small_encoder()
    old = applied(encoder)
    new = gradients_of(encoder, 2)
    expected = dict(new)
    old.clear()
    assert old.global_norm() == 0.0
    encoder.vjp(small_inputs(seed=2), seed=2)[1](ONES, into=old)
    assert_same(old, expected)
    assert_same(new, expected)


def test_what_was_copied_not_applied_or_changed_stays() -> None:
    encoder = small_encoder()
    first = applied(encoder)
    kept, plain = first.copy(), dict(first)
    unused = gradients_of(encoder, 2)
    values = dict(unused)
    assert_passed_on(first)
    assert_same(kept, plain)
    # A copy is not part of the exchange even if it is applied.
    optimizers.SGD(0.1).apply_gradients(encoder, kept)
    doubled = gradients_of(encoder, 3)
    assert_same(unused, values)
    assert_same(kept, plain)
    optimizers.SGD(0.1).apply_gradients(encoder, doubled)
    doubled.set(KEY, np.full(WIDTH, 4.0))
    gradients_of(encoder, 4)
    np.testing.assert_array_equal(doubled[KEY], np.full(WIDTH, 4.0))
    # Nor does it count that another encoder is updated with them.
    optimizers.SGD(0.1).apply_gradients(small_encoder(), doubled)
    gradients_of(encoder, 4)
    np.testing.assert_array_equal(doubled[KEY], np.full(WIDTH, 4.0))
    optimizers.SGD(0.1).apply_gradients(encoder, doubled)
    gradients_of(encoder, 5)
    assert_passed_on(doubled)


def test_an_update_that_fails_passes_nothing_on() -> None:
    encoder = small_encoder()
    old = gradients_of(encoder)
    old.set(KEY, np.full(WIDTH, np.inf))
    with pytest.raises(ValueError, match="gradients: their global norm is inf"):
        optimizers.SGD(0.1, global_clipnorm=1.0).apply_gradients(encoder, old)
    gradients_of(encoder, 2)
    assert np.isinf(old[KEY]).all()


def test_gradients_that_the_caller_made_stay_the_callers() -> None:
    """Whatever is computed between two updates with them."""
    encoder = small_encoder()
    own, optimizer = Gradients(encoder), optimizers.SGD(0.1)
    for step in range(3):
        own.clear()
        encoder.vjp(small_inputs(seed=step), seed=step)[1](ONES, into=own)
        optimizer.apply_gradients(encoder, own)
        expected = dict(own)
        applied(encoder, 7)
        gradients_of(encoder, 8)
        assert_same(own, expected)


def test_an_array_of_the_memory_itself_keeps_it() -> None:
    encoder = small_encoder()
    old = applied(encoder)
    (buffer,) = old.buffers
    lease = buffer.lease()
    buffer.finish()
    values = np.asarray(lease.slice(0, len(lease)))
    del lease
    expected = values.copy()
    for seed in range(2, 5):
        applied(encoder, seed)
        assert np.array_equal(values, expected)
    assert expected.any()


def test_every_part_passes_on_its_own() -> None:
    encoder, other = small_encoder(), small_encoder()
    model = models.BertClassifier(encoder, 2, seed=0)
    batch = (small_inputs(4), np.arange(4) % 2)
    optimizer = optimizers.SGD(0.1)
    _, old = model.loss_and_gradients(batch, seed=0)
    optimizer.apply_gradients(model, old)
    expected = dict(old)
    applied(other)
    gradients_of(other, 2)
    models.BertClassifier(other, 2).loss_and_gradients(batch, seed=0)
    assert_same(old, expected)
    gradients_of(encoder, 2)
    assert_passed_on(old)
    of_head = [variable.key for variable in next(iter(model.heads.values())).weights]
    assert of_head
    for key in of_head:
        np.testing.assert_array_equal(old[key], expected[key])
    model.loss_and_gradients(batch, seed=1)
    with pytest.raises(RuntimeError, match="gradients: they have been applied"):
        old[of_head[0]]


def test_pretraining_in_a_loop() -> None:
    """Its head adds to the encoder's gradients before the encoder does."""
    results = []
    for keeps in (False, True):
        encoder = small_encoder()
        model = models.BertPretrainerV2(encoder, seed=0)
        optimizer, into = optimizers.AdamW(1e-2), Gradients(model)
        for step in range(3):
            inputs = small_inputs(4, seed=step) | {
                "masked_lm_positions": np.tile([1, 3], (4, 1)),
                "masked_lm_ids": np.full((4, 2), 5 + step),
                "masked_lm_weights": np.ones((4, 2)),
            }
            into.clear()
            found = model.loss_and_gradients(inputs, seed=step, into=into if keeps else None)[1]
            optimizer.apply_gradients(model, found)
        results.append([variable.numpy() for variable in model.weights])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_threads_leave_what_was_applied_alone() -> None:
    """Each of them may read what it has applied until it computes the next gradients itself."""
    encoder, count = small_encoder(num_threads=1), 4
    barrier = Barrier(count)

    def train(number: int) -> None:
        optimizer = optimizers.SGD(1e-6)
        for step in range(20):
            gradients = gradients_of(encoder, 20 * number + step)
            expected = dict(gradients)
            optimizer.apply_gradients(encoder, gradients)
            barrier.wait(60)
            # Now some of the others are computing their next ones.
            if number % 2:
                assert_same(gradients, expected)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(train, number) for number in range(count)]:
            done.result()
    # Nor does another thread take over what nobody uses in its own.
    old = applied(encoder)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gradients_of, encoder, 2).result()
    assert old[KEY].any()
    gradients_of(encoder, 3)
    assert_passed_on(old)
