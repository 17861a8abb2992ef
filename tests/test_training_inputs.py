"""What a call of the encoder takes, training takes, too: the same numbers in any form give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from encoders import LENGTH, small_encoder, small_inputs
from sparse_mixer import models, optimizers

Array = np.ndarray[Any, Any]


class Tensor:
    """A tensor that numpy can view."""

    def __init__(self, array: Any) -> None:
        self._array = np.asarray(array)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self._array if dtype is None else self._array.astype(dtype)


class Capsule:
    """A tensor with ``__dlpack__`` alone."""

    def __init__(self, array: Any) -> None:
        self._array = np.ascontiguousarray(array)

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class Frame:
    """What this package needs of a table of pandas."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._columns = columns

    @property
    def columns(self) -> list[str]:
        return list(self._columns)

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]


def column_of_lists(array: Array) -> Array:
    cells = np.empty(len(array), object)
    cells[:] = [row.tolist() for row in array] if array.ndim > 1 else array.tolist()
    return cells


FORMS: dict[str, Callable[[Array], Any]] = {
    "lists": lambda a: a.tolist(),
    "lists of arrays": list,
    "floats": lambda a: a.astype(np.float64),
    "small integers": lambda a: a.astype(np.int8),
    "big-endian": lambda a: a.astype(">i4"),
    "objects": lambda a: a.astype(object),
    "cells with lists": column_of_lists,
    "tensors": Tensor,
    "dlpack": Capsule,
}


def data(labels: str) -> tuple[dict[str, Array], Any, Array]:
    inputs = small_inputs(6)
    classes = inputs["input_word_ids"] % 2
    return inputs, {"examples": classes[:, 0], "tokens": classes}[labels].astype(np.int64), np.array([1, 2, 0, 1, 3, 1])


def run(model: Callable[[Any], models.Model], given: Any, held_out: Any) -> Any:
    trained = model(small_encoder())
    history = trained.fit(
        given, optimizer=optimizers.SGD(0.1), epochs=2, batch_size=4, seed=1, validation_data=held_out, progress=False
    )
    return history.epochs, trained.evaluate(held_out, batch_size=4), trained.get_weights()


def assert_same(one: Any, other: Any) -> None:
    assert one[:2] == other[:2]
    for a, b in zip(one[2], other[2], strict=True):
        np.testing.assert_array_equal(a, b)


KINDS: dict[str, tuple[str, Callable[[Any], models.Model]]] = {
    "classifier": ("examples", lambda encoder: models.BertClassifier(encoder, 2, seed=0)),
    "regression": ("examples", lambda encoder: models.BertClassifier(encoder, 1, seed=0)),
    "tokens": ("tokens", lambda encoder: models.BertTokenClassifier(encoder, 2, seed=0)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_form_of_arrays(kind: str, form: str) -> None:
    labels, model = KINDS[kind]
    inputs, classes, weights = data(labels)
    change = FORMS[form]
    changed = {name: change(array) for name, array in inputs.items()}
    expected = run(model, (inputs, classes, weights), (inputs, classes))
    assert_same(run(model, (changed, change(classes), change(weights)), (changed, change(classes))), expected)
    assert_same(run(model, [changed, change(classes), change(weights)], [changed, change(classes)]), expected)
    assert_same(run(model, (Frame(changed), change(classes), change(weights)), [Frame(changed), classes]), expected)
    trained = model(small_encoder())
    np.testing.assert_array_equal(_numbers(trained(changed)), _numbers(trained(inputs)))
    np.testing.assert_array_equal(_numbers(trained(Frame(changed))), _numbers(trained(inputs)))


def _numbers(outputs: Any) -> Array:
    numbers: Array = outputs["logits"] if isinstance(outputs, dict) else outputs
    return numbers


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_spans(form: str) -> None:
    inputs, classes, _ = data("examples")
    start, end = FORMS[form](classes), FORMS[form](classes + 1)

    def model(encoder: Any) -> models.Model:
        return models.BertSpanLabeler(encoder, seed=0)

    spans = {"start_positions": classes, "end_positions": classes + 1}
    expected = run(model, (inputs, spans), (inputs, spans))
    for labels in ({"start_positions": start, "end_positions": end}, (start, end), [start, end]):
        assert_same(run(model, (inputs, labels), [inputs, labels]), expected)


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_batches(form: str) -> None:
    inputs, classes, weights = data("examples")
    change = FORMS[form]

    def batches(change: Callable[[Array], Any], of: type) -> list[Any]:
        cut = [slice(0, 3), slice(3, 6)]
        return [
            of(({name: change(a[part]) for name, a in inputs.items()}, change(classes[part]), change(weights[part])))
            for part in cut
        ]

    def trained(given: Any) -> Any:
        model = models.BertClassifier(small_encoder(), 2, seed=0)
        history = model.fit(given, optimizer=optimizers.SGD(0.1), seed=1, validation_data=given, progress=False)
        return history.epochs, model.evaluate(given), model.get_weights()

    expected = trained(batches(np.asarray, tuple))
    assert_same(trained(batches(change, tuple)), expected)
    assert_same(trained(batches(change, list)), expected)


def test_pandas_and_tensorflow_if_they_are_there() -> None:
    inputs, classes, _ = data("examples")
    expected = run(KINDS["classifier"][1], (inputs, classes), (inputs, classes))
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({name: list(array) for name, array in inputs.items()}, index=range(10, 16))
    frames = {name: pandas.DataFrame(array) for name, array in inputs.items()}
    series = pandas.Series(classes, index=range(10, 16))
    for given in ((frame, series), [frames, series], (frames, pandas.Series(classes, dtype="Int64"))):
        assert_same(run(KINDS["classifier"][1], given, given), expected)


def predict(inputs: Any, **arguments: Any) -> Any:
    return models.BertClassifier(small_encoder(num_layers=2), 3, seed=0).predict(inputs, **arguments)


@pytest.mark.parametrize("value", [np.array(0), np.array(False), np.float32(1), 3, None, "texts"], ids=repr)
def test_predict_says_what_it_takes(value: Any) -> None:
    with pytest.raises(TypeError, match="x: expected inputs or an iterable of batches, got"):
        models.BertClassifier(small_encoder(), 2, seed=0).predict(value)


def test_predict_takes_batches() -> None:
    """As many examples as one likes, a few at a time."""
    inputs = small_inputs(50)
    model = models.BertClassifier(small_encoder(), 3, seed=0)
    sizes: list[int] = []
    whole = model.call

    def counted(inputs: Any, **options: Any) -> Any:
        sizes.append(len(inputs["input_type_ids"]))
        return whole(inputs, **options)

    model.call = counted  # type: ignore[method-assign]
    logits = whole(inputs)
    expected = logits.argmax(-1)
    np.testing.assert_array_equal(model.predict(inputs), logits)
    assert sizes == [32, 18]
    np.testing.assert_array_equal(model.predict_classes(inputs, batch_size=7), expected)
    assert sizes[2:] == [7] * 7 + [1]
    none = {name: array[:0] for name, array in inputs.items()}
    assert model.predict(none).shape == (0, 3)
    assert model.predict_classes(none).shape == (0,)
    for form in FORMS.values():
        np.testing.assert_array_equal(model.predict({n: form(a) for n, a in inputs.items()}), logits)
    grouped = models.BertClassifier(small_encoder(examples_per_group=4.0), 3, seed=0)
    twelve = {name: array[:12] for name, array in inputs.items()}
    np.testing.assert_array_equal(grouped.predict(twelve, batch_size=3), grouped(twelve))


class Unreadable:
    """What torch says of tensors that numpy cannot have."""

    def __init__(self, error: Exception, dtype: str = "torch.float32") -> None:
        self._error, self.dtype = error, dtype

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise self._error


BFLOAT16 = Unreadable(TypeError("Got unsupported ScalarType BFloat16"), "torch.bfloat16")
WITH_GRADIENT = Unreadable(RuntimeError("Can't call numpy() on Tensor that requires grad."))
ON_DEVICE = Unreadable(TypeError("can't convert cuda:0 device type tensor to numpy."))


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (["a", "b", "a", "b", "a", "b"], TypeError, r"labels: expected .*got texts; .*return_inverse"),
        (np.array([b"a"] * 6), TypeError, "labels: expected .*got texts"),
        (np.eye(2)[[0, 1, 0, 1, 0, 1]], ValueError, r"labels: .*one-hot labels become class indices by labels.argmax"),
        ([[1, 0]] * 6, ValueError, "one-hot"),
        ([0, 1, 0.5, 0, 1, 0], TypeError, r"labels\[\d\]: got 0.5, expected an integer"),
        ([0, 1, np.nan, 0, 1, 0], TypeError, r"labels\[\d\]: got nan, expected an integer"),
        ([0, 1, None, 0, 1, 0], TypeError, "labels: expected integers, got dtype object"),
        ([[0], [1, 2], [0], [1], [0], [1]], ValueError, "labels: cannot be read as one array"),
        (3, ValueError, "labels: expected an entry per example, got a single value"),
        ([0, 1], ValueError, r"data: expected arrays of one first dimension, got lengths .*'labels': 2"),
        (BFLOAT16, TypeError, r"labels: cannot be read as an array: .*BFloat16; .*pass tensor.float\(\)"),
        (WITH_GRADIENT, TypeError, r"labels: .*pass tensor.detach\(\)"),
        (ON_DEVICE, TypeError, r"labels: .*pass tensor.cpu\(\)"),
        (None, ValueError, "labels: missing"),
    ],
)
def test_labels_that_are_none_get_a_hint(labels: Any, kind: Any, message: str) -> None:
    model = models.BertClassifier(small_encoder(), 2)
    inputs = small_inputs(6)
    calls = [
        lambda: model.fit((inputs, labels), optimizer=optimizers.SGD(), shuffle=False, progress=False),
        lambda: model.evaluate((inputs, labels)),
        lambda: model.fit(
            (inputs, [0, 1] * 3), optimizer=optimizers.SGD(), validation_data=(inputs, labels), progress=False
        ),
    ]
    for call in calls:
        with pytest.raises(kind, match=message):
            call()


@pytest.mark.parametrize("name", ["input_word_ids", "input_mask", "input_word_embeddings"])
def test_tensors_that_numpy_cannot_have_get_a_hint(name: str) -> None:
    encoder = small_encoder()
    for tensor, hint in ((BFLOAT16, "float"), (WITH_GRADIENT, "detach"), (ON_DEVICE, "cpu")):
        with pytest.raises(TypeError, match=rf"{name}: .*pass tensor\.{hint}\(\)"):
            encoder(small_inputs() | {name: tensor})
    with pytest.raises(TypeError, match=f"{name}: expected .*texts|{name}: .*texts"):
        encoder(small_inputs() | {name: np.full((2, LENGTH), "a")})
