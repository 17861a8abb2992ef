"""Vector-Jacobian products: how often they may be used, and by how many threads."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from sparse_mixer import models, optimizers
from sparse_mixer.gradients import Gradients
from sparse_mixer.masking import mask_tokens

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


def test_gradients_with_respect_to_some_weights_have_the_same_bits() -> None:
    encoder = small_encoder()
    both = {**ONES, "sequence_output": np.cos(np.arange(2 * 8 * 16, dtype=np.float32)).reshape(2, 8, 16)}
    expected = encoder.vjp(small_inputs(), seed=1)[1](both)
    for layer in encoder.layers:
        _, vjp = encoder.vjp(small_inputs(), seed=1, wrt=layer.weights)
        gradients = vjp(both)
        assert list(gradients) == [variable.key for variable in layer.weights]
        assert_same(gradients, {variable.key: expected[variable.key] for variable in layer.weights})
    _, vjp = encoder.vjp(small_inputs(), seed=1, wrt=["pooler_transform/bias", encoder.get_embedding_table()])
    assert sorted(vjp(both)) == ["pooler_transform/bias", "word_embeddings/embeddings"]
    assert not encoder.vjp(small_inputs(), seed=1, wrt=[])[1](both)


def test_gradients_with_respect_to_inputs() -> None:
    encoder = small_encoder()
    inputs = small_inputs()
    words = encoder.get_embedding_layer()(inputs.pop("input_word_ids"))
    given = inputs | {"input_word_embeddings": words}
    expected = encoder.vjp(given, seed=1)[1](ONES)
    gradients = encoder.vjp(given, seed=1, wrt=["input_word_embeddings"])[1](ONES)
    assert list(gradients) == ["input_word_embeddings"]
    np.testing.assert_array_equal(gradients["input_word_embeddings"], expected["input_word_embeddings"])
    assert "input_word_embeddings" not in encoder.vjp(given, seed=1, wrt=["pooler_transform/bias"])[1](ONES)


def test_other_gradients_of_into_stay() -> None:
    encoder = small_encoder()
    into = encoder.vjp(small_inputs(), seed=1)[1](ONES)
    before = dict(into)
    _, vjp = encoder.vjp(small_inputs(), seed=1, wrt=["pooler_transform/bias"])
    assert vjp(ONES, into=into) is into
    for key, values in before.items():
        if key == "pooler_transform/bias":
            np.testing.assert_allclose(into[key], 2 * values, rtol=1e-6)
        else:
            np.testing.assert_array_equal(into[key], values, err_msg=key)


@pytest.mark.parametrize(
    ("wrt", "error", "message"),
    [
        (["rubbish"], ValueError, r"wrt\[0\]: no weight is called 'rubbish'"),
        (["pooler_transform/bias", "dense_inputs"], ValueError, r"wrt\[1\]: the inputs have no dense_inputs"),
        (
            [small_encoder().get_embedding_table()],
            ValueError,
            r"wrt\[0\]: expected a key or a variable of this encoder",
        ),
        ([3], TypeError, r"wrt\[0\]: expected a key or a variable of this encoder, got int"),
        ("pooler_transform/bias", TypeError, r"wrt: expected a list of keys or variables, got a string; pass a list"),
        (3, TypeError, r"wrt: expected"),
    ],
)
def test_what_there_is_no_gradient_of_is_named(wrt: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small_encoder().vjp(small_inputs(), wrt=wrt)


def test_models_differentiate_what_is_trainable() -> None:
    """With the bits that all gradients together have, and optimisers pass over the rest."""
    batch = (small_inputs(4), np.arange(4) % 3)
    model = models.BertClassifier(small_encoder(), 3, seed=0)
    _, expected = model.loss_and_gradients(batch, seed=1)
    for free in ([], [model.encoder.layers[-1]], [model.encoder.layers[-3], model.encoder.layers[-1]]):
        model.encoder.trainable = False
        for layer in free:
            layer.trainable = True
        _, gradients = model.loss_and_gradients(batch, seed=1)
        assert list(gradients) == [weight.key for weight in model.all_variables if weight.trainable]
        assert_same(gradients, {key: expected[key] for key in gradients})
        before = {weight.key: weight.numpy() for weight in model.weights}
        optimizers.SGD(0.1).apply_gradients(model, gradients)
        for weight in model.weights:
            assert weight.trainable or np.array_equal(weight.numpy(), before[weight.key])
        model.set_weights([before[weight.key] for weight in model.weights])


def test_frozen_word_tables_get_no_gradient_from_masked_language_models() -> None:
    encoder = small_encoder()
    model = models.BertPretrainerV2(encoder, seed=0)
    batch = mask_tokens(small_inputs(4), seed=0, mask_id=1, vocab_size=50, special_ids=range(4), max_predictions=2)
    _, expected = model.loss_and_gradients(batch, seed=1)
    encoder.layers[0].trainable = False
    _, gradients = model.loss_and_gradients(batch, seed=1)
    assert "word_embeddings/embeddings" not in gradients
    assert_same(gradients, {key: expected[key] for key in gradients})
