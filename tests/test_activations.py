"""`inner_activation`: names, dicts, foreign objects, callables, and the functions behind them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference_numpy
import sparse_mixer
from encoders import small_encoder, small_inputs
from sparse_mixer import Activation, activations

Array = np.ndarray[Any, Any]

KERAS_NAMES = (
    "elu exponential gelu hard_sigmoid leaky_relu linear log_softmax mish relu relu6 selu sigmoid silu softmax "
    "softplus softsign swish tanh ELU LeakyReLU ReLU Softmax ThresholdedReLU Text>gelu Text>hard_swish Text>identity "
    "Text>mish"
)


def outputs_with(activation: Any, **changes: Any) -> Array:
    """Output of an encoder whose pre-activations are spread over about [-8, 8]."""
    changes = {"inner_activation": activation, "initializer": "glorot_uniform", "attention_layers": ()} | changes
    encoder = small_encoder(**changes)
    for weight in encoder.weights:
        if weight.key.endswith("intermediate/kernel"):
            weight.assign(weight.numpy() * 4)
    sequence: Array = encoder(small_inputs())["sequence_output"]
    return sequence


@pytest.mark.parametrize("name", KERAS_NAMES.split())
def test_every_keras_name_is_known(name: str) -> None:
    assert isinstance(activations.resolve(name), dict)
    assert np.isfinite(outputs_with(name)).all()


@pytest.mark.parametrize("name", [*reference_numpy.ACTIVATIONS, "hard_swish"])
def test_names_mean_their_formulas(name: str) -> None:
    formula = (reference_numpy.ACTIVATIONS | {"hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6})[name]
    expected = outputs_with(Activation(lambda x: formula(x.astype(np.float64))))
    np.testing.assert_allclose(outputs_with(name), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("form", "formula"),
    [
        ({"name": "elu", "alpha": 0.3}, lambda x: np.where(x > 0, x, 0.3 * np.expm1(x))),
        ({"class_name": "ELU", "config": {"alpha": 0.3}}, lambda x: np.where(x > 0, x, 0.3 * np.expm1(x))),
        ({"class_name": "LeakyReLU", "config": {"alpha": 0.1}}, lambda x: np.where(x > 0, x, 0.1 * x)),
        ({"class_name": "LeakyReLU", "config": {"negative_slope": 0.1}}, lambda x: np.where(x > 0, x, 0.1 * x)),
        ("LeakyReLU", lambda x: np.where(x > 0, x, 0.3 * x)),
        ({"class_name": "ThresholdedReLU", "config": {"theta": 0.5}}, lambda x: np.where(x > 0.5, x, 0)),
        (
            {"class_name": "ReLU", "config": {"max_value": 2.0, "negative_slope": 0.1, "threshold": 0.5}},
            lambda x: np.where(x >= 2, 2.0, np.where(x >= 0.5, x, 0.1 * (x - 0.5))),
        ),
        ({"class_name": "Activation", "config": {"activation": "tanh"}}, np.tanh),
        ({"module": "builtins", "class_name": "function", "config": "Text>identity"}, lambda x: x),
        (None, lambda x: x),
    ],
)
def test_serialised_forms(form: Any, formula: Callable[[Array], Array]) -> None:
    expected = outputs_with(Activation(lambda x: formula(x.astype(np.float64))))
    np.testing.assert_allclose(outputs_with(form), expected, rtol=1e-4, atol=2e-5)
    resolved = activations.resolve(form)
    assert activations.resolve(activations.serialize(resolved)) == resolved


def test_foreign_objects_are_recognised_by_name() -> None:
    def framework_function(name: str, module: str) -> Callable[[Any], Any]:
        def function(x: Any) -> Any:
            raise AssertionError("recognised functions are not called")

        function.__name__, function.__module__ = name, module
        return function

    keras2, keras3 = "tf_keras.src.activations", "keras.src.activations.activations"
    for name, module, expected in [
        ("relu", keras2, "relu"),
        ("relu", "tensorflow.python.ops.gen_nn_ops", "relu"),
        ("gelu", keras2, "gelu"),
        ("gelu", keras3, "gelu"),
        ("gelu", "official.modeling.activations.gelu", "gelu_tanh"),
        ("<lambda>", "official.nlp.modeling.networks.sparse_mixer", "gelu_tanh"),
        ("identity", "tensorflow.python.ops.array_ops", "linear"),
        ("hard_sigmoid", keras2, "hard_sigmoid"),
    ]:
        assert activations.serialize(activations.resolve(framework_function(name, module))) == expected
    partial = functools.partial(framework_function("gelu", keras2), approximate=True)
    assert activations.serialize(activations.resolve(partial)) == "gelu_tanh"
    # Keras 3 changed this formula, and other packages may mean anything by a name.
    for name, module in [("hard_sigmoid", keras3), ("gelu", "jax._src.nn.functions"), ("unheard_of", keras2)]:
        assert isinstance(activations.resolve(framework_function(name, module)), Activation)


def test_callables_are_called_with_rows_and_named() -> None:
    shapes = []

    def squared_relu(x: Array) -> Array:
        shapes.append(x.shape)
        assert x.dtype == np.float32
        return np.maximum(x, 0) ** 2

    encoder = small_encoder(inner_activation=squared_relu)
    encoder(small_inputs())
    assert {shape[1] for shape in shapes} == {32}
    assert encoder.get_config()["inner_activation"].name == "squared_relu"


def test_callables_work_with_many_threads() -> None:
    expected = outputs_with(np.tanh, num_threads=1)
    np.testing.assert_array_equal(outputs_with(np.tanh, num_threads=4), expected)


def test_activation_checks_its_arguments() -> None:
    with pytest.raises(TypeError, match="function: expected a callable, got int"):
        Activation(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="derivative: expected a callable, got str"):
        Activation(np.tanh, derivative="relu")  # type: ignore[arg-type]
    assert sparse_mixer.Activation is Activation
