"""Activation functions of the feed-forward layers and experts.

`inner_activation` may be given as

* a Keras name (``"relu"``, ``"swish"``, ``"gelu"``, ...) or a registered Model Garden name (``"Text>gelu"``),
* the dict that Keras serialises an activation to,
* a Keras or TensorFlow function or activation layer, recognised by its name without importing either package,
* a `sparse_mixer.Activation`, or any other callable from array to array (slow: Python is called per layer).

The first three run natively. ``"gelu"`` is the exact form ``0.5 x (1 + erf(x / sqrt 2))``, as in Keras; the
encoder's default is the tanh form, ``"gelu_tanh"`` (``"Text>gelu"`` in the Model Garden).
"""

from __future__ import annotations

import base64
import binascii
import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_float

Array = npt.NDArray[np.float32]
NativeActivation = dict[str, Any]

DEFAULT = "gelu_tanh"

# Keras name -> what the core computes. The core's names are the canonical ones.
_BUILTIN: dict[str, NativeActivation] = {
    "elu": {"name": "elu", "alpha": 1.0},
    "exponential": {"name": "exponential"},
    "gelu": {"name": "gelu"},
    "gelu_tanh": {"name": "gelu_tanh"},
    "hard_sigmoid": {"name": "hard_sigmoid"},
    "hard_swish": {"name": "hard_swish"},
    "leaky_relu": {"name": "relu", "max_value": None, "negative_slope": 0.2, "threshold": 0.0},
    "linear": {"name": "linear"},
    "log_softmax": {"name": "log_softmax"},
    "mish": {"name": "mish"},
    "relu": {"name": "relu", "max_value": None, "negative_slope": 0.0, "threshold": 0.0},
    "relu6": {"name": "relu", "max_value": 6.0, "negative_slope": 0.0, "threshold": 0.0},
    "selu": {"name": "selu"},
    "sigmoid": {"name": "sigmoid"},
    "softmax": {"name": "softmax"},
    "softplus": {"name": "softplus"},
    "softsign": {"name": "softsign"},
    "swish": {"name": "swish"},
    "tanh": {"name": "tanh"},
}
_ALIASES = {
    "silu": "swish",
    "Text>gelu": "gelu_tanh",
    "Text>hard_swish": "hard_swish",
    "Text>identity": "linear",
    "Text>mish": "mish",
    "Text>simple_swish": "swish",
}
# Functions of TensorFlow and Keras that go by a name which Keras does not accept as a string.
_FUNCTION_ALIASES = {"identity": "linear", "exp": "exponential", "simple_swish": "swish", "hard_silu": "hard_swish"}
_FRAMEWORKS = frozenset({"keras", "official", "tensorflow", "tf_keras"})


@dataclass(frozen=True)
class Activation:
    """An activation given as Python functions.

    Attributes:
        function: Called with a float32 array ``[rows, width]``, returns an array of that shape. It must not change
            its argument, and treat every row alike: how many rows come in one call is not fixed.
        derivative: ``d function(x) / d x``, elementwise, same shapes. Needed to train; inference works without.
        name: Shown in `repr` and summaries.

    Examples:
        >>> import numpy as np
        >>> squared_relu = Activation(lambda x: np.maximum(x, 0) ** 2, derivative=lambda x: 2 * np.maximum(x, 0))
        >>> squared_relu(np.array([-1.0, 3.0]))
        array([0., 9.])
    """

    function: Callable[[Any], Any]
    derivative: Callable[[Any], Any] | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        for field in ("function", "derivative"):
            value = getattr(self, field)
            if not callable(value) and not (field == "derivative" and value is None):
                raise TypeError(f"{field}: expected a callable, got {type(value).__name__}")

    def __call__(self, x: Any) -> Any:
        """Apply the function to `x`, an array of any shape."""
        return self.function(x)


def names() -> list[str]:
    """Every string that `inner_activation` accepts, sorted."""
    return sorted([*_BUILTIN, *_ALIASES])


def resolve(identifier: Any, argument: str = "inner_activation") -> NativeActivation | Activation:
    """Find out which activation `identifier` stands for.

    Args:
        identifier: Any of the forms listed in this module's documentation; ``None`` means ``"linear"``.
        argument: Name used in error messages.

    Returns:
        A dict ``{"name": ..., <parameters>}`` for activations that the core computes, otherwise an `Activation`.

    Raises:
        ValueError: The name, or the serialised form, is not a known activation.
        TypeError: `identifier` is neither a name, a dict nor a callable.
    """
    if identifier is None:
        return dict(_BUILTIN["linear"])
    if isinstance(identifier, Activation):
        return identifier
    if isinstance(identifier, str):
        return _from_name(identifier, argument)
    if isinstance(identifier, Mapping):
        return _from_mapping(identifier, argument)
    if not callable(identifier):
        raise TypeError(
            f"{argument}: expected a name, a Keras activation, a dict or a callable, got {type(identifier).__name__}"
        )
    builtin = _from_framework_object(identifier, argument)
    if builtin is not None:
        return builtin
    name = getattr(identifier, "__name__", type(identifier).__name__)
    return Activation(identifier, name=str(name))


def serialize(activation: NativeActivation | Activation) -> Any:
    """The form of a resolved activation that `get_config` returns.

    A Keras name where there is one, a dict with parameters otherwise. Python callables come back as they are: they
    have no JSON form.
    """
    if isinstance(activation, Activation):
        return activation
    for name, builtin in _BUILTIN.items():
        if builtin == activation:
            return name
    return dict(activation)


def _from_name(name: str, argument: str) -> NativeActivation:
    builtin = _BUILTIN.get(_ALIASES.get(name, name))
    if builtin is not None:
        return dict(builtin)
    if name in _LAYER_CLASSES:
        return _LAYER_CLASSES[name]({})
    close = difflib.get_close_matches(name.lower(), names(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{argument}: unknown activation {name!r}{hint} Known names: {', '.join(names())}")


def _from_mapping(form: Mapping[str, Any], argument: str) -> NativeActivation | Activation:
    """Read our own dict form, Keras's serialised layers and functions, and the default lambda's byte code."""
    if "name" in form and "class_name" not in form:
        return _from_own_form(form, argument)
    if "value" in form:
        return _from_byte_code(form["value"], argument)
    class_name, config = form.get("class_name"), form.get("config")
    if class_name == "function" and isinstance(config, str):
        return _from_name(config, argument)
    if class_name == "Activation" and isinstance(config, Mapping):
        return resolve(config.get("activation"), argument)
    if class_name in _LAYER_CLASSES and isinstance(config, Mapping):
        return _LAYER_CLASSES[class_name](config)
    if isinstance(class_name, str) and not config:
        return _from_name(class_name, argument)
    raise ValueError(f"{argument}: cannot read the activation {dict(form)!r}; pass a name such as {DEFAULT!r}")


def _from_own_form(form: Mapping[str, Any], argument: str) -> NativeActivation:
    builtin = _from_name(str(form["name"]), argument)
    for key, value in form.items():
        if key == "name":
            continue
        if key not in builtin:
            raise ValueError(f"{argument}: {form['name']!r} has no parameter {key!r}, only {sorted(builtin)[1:]}")
        builtin[key] = None if value is None else as_float(f"{argument}: {key}", value)
    return builtin


def _from_byte_code(value: Any, argument: str) -> NativeActivation:
    """Recognise the reference's default lambda in a serialised config, without running any byte code."""
    try:
        code = base64.b64decode(value[0])
    except (TypeError, IndexError, KeyError, binascii.Error):
        code = b""
    if all(word in code for word in (b"sparse_mixer.py", b"gelu", b"approximate")):
        return dict(_BUILTIN[DEFAULT])
    raise ValueError(
        f"{argument}: the config holds the byte code of a Python lambda, which is never run; "
        f"replace it by a name such as {DEFAULT!r} or by a callable"
    )


def _from_framework_object(function: Any, argument: str) -> NativeActivation | None:
    """Recognise functions and layers of TensorFlow, Keras and the Model Garden by name; None for all else."""
    if isinstance(function, functools.partial):
        exact = _from_framework_object(function.func, argument)
        if exact == _BUILTIN["gelu"] and not function.args and function.keywords.keys() == {"approximate"}:
            return dict(_BUILTIN["gelu_tanh" if function.keywords["approximate"] else "gelu"])
        return None
    is_function = hasattr(function, "__name__")
    owner = function if is_function else type(function)
    module = str(getattr(owner, "__module__", ""))
    if module.split(".")[0] not in _FRAMEWORKS:
        return None
    if not is_function:
        return _from_framework_layer(function, argument)
    name = str(function.__name__)
    if name == "<lambda>" and module.endswith("networks.sparse_mixer"):
        return dict(_BUILTIN[DEFAULT])
    if module.startswith("official.") and name == "gelu":
        return dict(_BUILTIN["gelu_tanh"])
    if name == "hard_sigmoid" and module == "keras.src.activations.activations":
        return None  # Keras 3 changed the formula to relu6(x + 3) / 6.
    builtin = _BUILTIN.get(_FUNCTION_ALIASES.get(name, _ALIASES.get(name, name)))
    return None if builtin is None else dict(builtin)


def _from_framework_layer(layer: Any, argument: str) -> NativeActivation | None:
    class_name = type(layer).__name__
    if class_name == "Activation" and hasattr(layer, "activation"):
        resolved = resolve(layer.activation, argument)
        return None if isinstance(resolved, Activation) else resolved
    if class_name in _LAYER_CLASSES and hasattr(layer, "get_config"):
        return _LAYER_CLASSES[class_name](layer.get_config())
    return None


def _relu_layer(config: Mapping[str, Any]) -> NativeActivation:
    max_value = config.get("max_value")
    return {
        "name": "relu",
        "max_value": None if max_value is None else float(max_value),
        "negative_slope": float(config.get("negative_slope") or 0.0),
        "threshold": float(config.get("threshold") or 0.0),
    }


def _leaky_relu_layer(config: Mapping[str, Any]) -> NativeActivation:
    # Keras 2 calls the slope alpha, Keras 3 negative_slope; both default to 0.3 in the layer.
    slope = config.get("alpha", config.get("negative_slope", 0.3))
    return {"name": "relu", "max_value": None, "negative_slope": float(slope), "threshold": 0.0}


def _thresholded_relu_layer(config: Mapping[str, Any]) -> NativeActivation:
    return {
        "name": "relu",
        "max_value": None,
        "negative_slope": 0.0,
        "threshold": float(config.get("theta", 1.0)),
    }


def _softmax_layer(config: Mapping[str, Any]) -> NativeActivation:
    axis = config.get("axis", -1)
    if axis != -1:
        raise ValueError(f"inner_activation: Softmax over axis {axis!r} is not supported, only the last axis (-1)")
    return dict(_BUILTIN["softmax"])


_LAYER_CLASSES: dict[str, Callable[[Mapping[str, Any]], NativeActivation]] = {
    "ELU": lambda config: {"name": "elu", "alpha": float(config.get("alpha", 1.0))},
    "LeakyReLU": _leaky_relu_layer,
    "ReLU": _relu_layer,
    "Softmax": _softmax_layer,
    "ThresholdedReLU": _thresholded_relu_layer,
}
