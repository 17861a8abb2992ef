"""Vector-Jacobian products: how often they may be used, and by how many threads."""

from __future__ import annotations

import contextlib
import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import ARGUMENTS, small_encoder, small_inputs
from sparse_mixer import SparseMixer, models, optimizers
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
    # Its last use releases it.
    assert_same(vjp(ONES, last=True), once)
    with pytest.raises(RuntimeError, match="vjp: it has been used"):
        vjp(ONES)


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
    expected = encoder.vjp(small_inputs(), seed=1)[1](ONES).copy()
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


def test_arrays_are_the_gradients_and_belong_to_the_caller() -> None:
    encoder = small_encoder()
    inputs = small_inputs()
    inputs["input_word_embeddings"] = np.ones((*inputs.pop("input_word_ids").shape, 16), np.float32)
    wrt = ["input_word_embeddings", "pooler_transform/bias", "type_embeddings/embeddings"]
    for chosen in (None, wrt):
        expected = encoder.vjp(inputs, seed=1, wrt=chosen)[1](ONES)
        arrays = encoder.vjp(inputs, seed=1, wrt=chosen)[1].arrays(ONES)
        assert_same(arrays, expected)
        for array in arrays.values():
            assert array.flags.writeable
            array += 1
        assert_same(encoder.vjp(inputs, seed=1, wrt=chosen)[1].arrays(ONES), expected)
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, expected[key] + 1)


def test_memory_of_arrays_is_used_again_once_they_are_gone() -> None:
    encoder = small_encoder()
    sparse_mixer.release_scratch()

    def arrays() -> dict[str, Any]:
        return encoder.vjp(small_inputs(), seed=1)[1].arrays(ONES)

    first = arrays()
    address = {key: array.ctypes.data for key, array in first.items()}
    assert all(place % 64 == 0 for place in address.values())
    second = arrays()
    assert not np.shares_memory(first["position_embedding/embeddings"], second["position_embedding/embeddings"])
    first = {"one": first["pooler_transform/bias"]}
    assert arrays()["pooler_transform/bias"].ctypes.data != address["pooler_transform/bias"]
    del first
    later = [arrays(), arrays()]
    assert address["pooler_transform/bias"] in [found["pooler_transform/bias"].ctypes.data for found in later]


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


def test_auxiliary_values_come_with_the_call() -> None:
    encoder = small_encoder()
    outputs, aux = encoder.forward(small_inputs(), training=True, seed=3)
    assert not encoder.aux_losses, "nothing is remembered"
    expected = encoder(small_inputs(), training=True, seed=3)
    assert_same(aux, encoder.aux_losses)
    np.testing.assert_array_equal(outputs["sequence_output"], expected["sequence_output"])
    other, vjp = encoder.vjp(small_inputs(seed=1), seed=3)
    assert other.keys() == outputs.keys()
    assert_same(vjp.aux, encoder.aux_losses)
    encoder(small_inputs())
    assert not np.array_equal(vjp.aux["router_confidence"], encoder.aux_losses["router_confidence"])


def test_every_change_of_the_weights_raises_their_version(tmp_path: Path) -> None:
    encoder = small_encoder()
    encoder.save(tmp_path / "weights.safetensors")
    gradients = encoder.vjp(small_inputs(), seed=1)[1](ONES)
    changes: list[Any] = [
        lambda: encoder.get_embedding_table().assign(np.ones((50, 16))),
        lambda: encoder.set_weights(encoder.get_weights()),
        lambda: encoder.layers[-1].set_weights(encoder.layers[-1].get_weights()),
        lambda: encoder.load_weights(tmp_path / "weights.safetensors"),
        lambda: optimizers.SGD(0.1).apply_gradients(encoder, gradients),
        lambda: models.BertClassifier(encoder, 2).fit(
            (small_inputs(2), np.array([0, 1])), optimizer=optimizers.SGD(0.1), progress=False
        ),
    ]
    for change in changes:
        before = encoder.weights_version
        change()
        assert encoder.weights_version > before
    before = encoder.weights_version
    encoder(small_inputs(), training=True)
    encoder.vjp(small_inputs())[1](ONES)
    encoder.save(tmp_path / "again.safetensors")
    twin = copy.copy(encoder)
    assert encoder.weights_version == before
    twin.set_weights(twin.get_weights())
    assert encoder.weights_version == before != twin.weights_version


@pytest.mark.parametrize("output_range", [None, 3])
def test_outputs_in_the_core_are_those_of_numpy(output_range: int | None) -> None:
    encoder = small_encoder(output_range=output_range)
    expected, _ = encoder.vjp(small_inputs(), seed=1)
    outputs, vjp = encoder.vjp(small_inputs(), seed=1, in_core=True)
    assert list(outputs) == ["sequence_output", "pooled_output"]
    for name, array in outputs.items():
        assert tuple(array.shape) == expected[name].shape
        np.testing.assert_array_equal(array.numpy(), expected[name])
    vjp(ONES)
    np.testing.assert_array_equal(outputs["sequence_output"].numpy(), expected["sequence_output"])


class Halved(SparseMixer):
    """A `call` of its own with its gradient."""

    def call(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        return self._changed(super().call(inputs, **options))

    def vjp(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        outputs, vjp = super().vjp(inputs, **options)
        return self._changed(outputs), lambda d_outputs, *rest, **into: vjp(self._changed(d_outputs), *rest, **into)

    def _changed(self, arrays: Any) -> Any:
        return {name: 0.5 * array if name == "sequence_output" else array for name, array in arrays.items()}


def all_models(encoder: SparseMixer) -> list[tuple[models.Model, Any]]:
    """Every kind of model with a batch."""
    inputs = small_inputs(4)
    masked = mask_tokens(inputs, seed=0, mask_id=1, vocab_size=50, special_ids=range(4), max_predictions=2)
    heads = [
        models.ClassificationHead(0, 3, name="all"),
        models.ClassificationHead(16, 2, -2, name="one"),
        models.ClassificationHead(0, 2, use_encoder_pooler=True, name="pooled"),
    ]
    labels = {"all_labels": inputs["input_word_ids"] % 3, "one_labels": np.arange(4) % 2, "pooled_labels": np.ones(4)}
    labels["pooled_labels"] = labels["pooled_labels"].astype(np.int32)
    return [
        (models.BertClassifier(encoder, 3, seed=0), (inputs, np.arange(4) % 3)),
        (models.BertClassifier(encoder, 3, use_encoder_pooler=False, seed=0), (inputs, np.arange(4) % 3)),
        (models.BertTokenClassifier(encoder, 3, seed=0), (inputs, inputs["input_word_ids"] % 3)),
        (models.BertSpanLabeler(encoder, seed=0), (inputs, [np.arange(4), np.arange(4) + 2])),
        (models.BertPretrainerV2(encoder, classification_heads=heads, seed=0), masked | labels),
    ]


@pytest.mark.parametrize("number", range(5))
def test_gradients_that_stay_in_the_core_are_those_of_numpy(number: int) -> None:
    """An encoder whose `vjp` is overridden gets and gives arrays of numpy; the gradients are the same."""

    class Plain(SparseMixer):
        def vjp(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
            assert "in_core" not in options
            return super().vjp(inputs, **options)

    results = []
    for kind in (SparseMixer, Plain):
        model, batch = all_models(kind(**ARGUMENTS))[number]
        results.append(model.loss_and_gradients(batch, seed=1))
    (metrics, gradients), (expected_metrics, expected) = results
    assert metrics == expected_metrics
    for key in expected:
        np.testing.assert_allclose(gradients[key], expected[key], rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("number", range(1, 5))
def test_gradients_of_a_call_that_is_overridden_are_slopes(number: int) -> None:
    encoder = Halved(**ARGUMENTS, output_dropout=0.0, attention_dropout=0.0)
    model, batch = all_models(encoder)[number]
    _, gradients = model.loss_and_gradients(batch, seed=0)
    before = model.get_weights()
    rate = 1e-3 / gradients.global_norm() ** 2
    losses = []
    for sign in (-1, 1):
        for variable in model.weights:
            variable.assign(variable.numpy() + sign * rate * gradients[variable.key])
        losses.append(model.loss_and_gradients(batch, seed=0)[0].means()["loss"])
        model.set_weights(before)
    assert losses[1] - losses[0] == pytest.approx(2e-3, rel=0.05)


def test_a_model_copies_neither_outputs_nor_their_gradients_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_mixer._core import vjp as module

    def refuse(*_: Any) -> Any:
        raise AssertionError("an output went through numpy")

    monkeypatch.setattr(module, "_contiguous", refuse)
    for model, batch in all_models(small_encoder()):
        model.loss_and_gradients(batch, seed=1)
