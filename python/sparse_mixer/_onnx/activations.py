"""The activations inside feed-forward layers and experts."""

from __future__ import annotations

import math
from typing import Any

from sparse_mixer._onnx.graph import Graph
from sparse_mixer.activations import Activation


def check(activation: Any) -> None:
    """Refuse an activation that is Python.

    Raises:
        ValueError: It is.
    """
    if isinstance(activation, Activation):
        raise ValueError(
            f"inner_activation: got the Python function {activation.name!r}, which has no ONNX form; export an encoder "
            "with one of the names in sparse_mixer.activations.names()"
        )


def apply(graph: Graph, activation: dict[str, Any], x: str) -> str:
    """The activation of `x`."""
    name = activation["name"]
    if name == "linear":
        return x
    if name in _OPERATORS:
        return graph.op(_OPERATORS[name], x)
    if name in ("softmax", "log_softmax"):
        return graph.op("Softmax" if name == "softmax" else "LogSoftmax", x, axis=-1)
    if name in ("gelu", "gelu_tanh"):
        return _gelu(graph, x, name == "gelu_tanh")
    if name == "elu":
        return graph.op("Elu", x, alpha=activation["alpha"])
    if name == "swish":
        return graph.op("Mul", x, graph.op("Sigmoid", x))
    if name == "hard_sigmoid":
        return graph.op("HardSigmoid", x, alpha=0.2, beta=0.5)
    if name == "hard_swish":
        return graph.op("Mul", x, graph.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    if name == "selu":
        return graph.op("Selu", x, alpha=1.6732632423543772, gamma=1.0507009873554805)
    if name == "mish":
        return graph.op("Mul", x, graph.op("Tanh", graph.op("Softplus", x)))
    if name == "relu":
        return _relu(graph, x, activation)
    raise ValueError(f"inner_activation: {name!r} has no ONNX form here")


_OPERATORS = {
    "exponential": "Exp",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "tanh": "Tanh",
}


def _gelu(graph: Graph, x: str, tanh: bool) -> str:
    if graph.opset >= 20:
        return graph.op("Gelu", x, approximate="tanh" if tanh else "none")
    half, one = graph.constant(0.5), graph.constant(1.0)
    # In the order of operators that runtimes know and replace by one of their own.
    if tanh:
        cube = graph.op("Pow", x, graph.constant(3.0))
        inner = graph.op("Add", x, graph.op("Mul", cube, graph.constant(0.044715)))
        curve = graph.op("Tanh", graph.op("Mul", inner, graph.constant(math.sqrt(2 / math.pi))))
        return graph.op("Mul", graph.op("Mul", x, half), graph.op("Add", curve, one))
    curve = graph.op("Erf", graph.op("Div", x, graph.constant(math.sqrt(2))))
    return graph.op("Mul", graph.op("Mul", x, graph.op("Add", curve, one)), half)


def _relu(graph: Graph, x: str, activation: dict[str, Any]) -> str:
    slope, threshold, most = activation["negative_slope"], activation["threshold"], activation["max_value"]
    if threshold == 0.0:
        y = graph.op("Relu", x) if slope == 0.0 else graph.op("LeakyRelu", x, alpha=slope)
    else:
        limit = graph.constant(threshold)
        below = graph.op("Mul", graph.op("Sub", x, limit), graph.constant(slope))
        y = graph.op("Where", graph.op("GreaterOrEqual", x, limit), x, below)
    return y if most is None else graph.op("Min", y, graph.constant(most))
