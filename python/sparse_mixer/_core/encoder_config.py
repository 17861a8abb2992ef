"""Encoder configurations of the Model Garden (``official.nlp.configs.encoders``) as arguments of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_mixer._core.checks import as_float
from sparse_mixer.initializers import TruncatedNormal

# What the Model Garden's names stand for where they differ from Keras's.
_ACTIVATIONS = {"gelu": "gelu_tanh", "simple_swish": "swish", "identity": "linear"}


def initializer_of_range(initializer: Any, initializer_range: Any) -> Any:
    """The initialiser that `initializer_range` stands for.

    Raises:
        ValueError: Both are given, or the range is below 0.
    """
    if initializer is not None:
        raise ValueError("initializer_range: given together with initializer, which it stands for")
    stddev = as_float("initializer_range", initializer_range)
    if stddev < 0.0:
        raise ValueError(f"initializer_range: expected at least 0, got {stddev}")
    return TruncatedNormal(stddev=stddev)


def arguments_of(config: Any) -> dict[str, Any]:
    """The constructor's arguments that ``official.nlp.configs.encoders.build_encoder`` makes of a configuration.

    Args:
        config: An ``EncoderConfig`` of type ``"sparse_mixer"``, a ``SparseMixerEncoderConfig``, or the dict that the
            ``as_dict`` of either gives.

    Raises:
        ValueError: Another type of encoder.
        TypeError: No configuration.
    """
    as_dict = getattr(config, "as_dict", None)
    given = as_dict() if callable(as_dict) else config
    if not isinstance(given, Mapping):
        raise TypeError(f"config: expected an encoder's configuration or a dict, got {type(config).__name__}")
    kind = given.get("type")
    if kind is not None or "sparse_mixer" in given:
        if kind != "sparse_mixer":
            raise ValueError(f"config: expected an encoder of type 'sparse_mixer', got {kind!r}")
        given = given["sparse_mixer"]
    arguments = dict(given)
    name = arguments.get("inner_activation")
    if isinstance(name, str):
        arguments["inner_activation"] = _ACTIVATIONS.get(name.lower(), name)
    return arguments
