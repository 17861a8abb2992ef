"""Sparse Mixer encoders as functions of JAX: `init_params` and `apply`. Needs the extra ``jax``.

``apply`` works under `jax.jit`, `jax.grad` and `jax.vmap`, with the optimisers of optax and any other code that takes
parameters as a dict of arrays. The encoder runs on the CPU, outside XLA, by way of callbacks.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_mixer._bridge import AUX_ROWS, Bridge
from sparse_mixer._core.checks import as_bool, as_strings
from sparse_mixer._core.extras import require
from sparse_mixer._core.variables import read_all
from sparse_mixer.networks import SparseMixer

__all__ = ["apply", "init_params"]

_OUTPUTS = ("sequence_output", "pooled_output", "encoder_outputs")
_INTEGERS = ("input_word_ids", "input_type_ids", "dense_type_ids")
_FLOATS = ("input_word_embeddings", "input_mask", "dense_inputs", "dense_mask")

_bridges: weakref.WeakKeyDictionary[SparseMixer, Bridge] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def init_params(encoder: SparseMixer) -> dict[str, Any]:
    """The weights of `encoder` as parameters for `apply`.

    Args:
        encoder: The encoder, whose later changes do not change what is returned.

    Returns:
        float32 arrays of JAX by key, such as ``"transformer/layer_0/intermediate/kernel"``, in Keras order.

    Raises:
        ImportError: JAX is not installed.
        TypeError: Not an encoder.
        ValueError: An encoder with an embedding layer of the caller's.
    """
    numpy = require("jax.numpy", "jax")
    bridge = _bridge_of(encoder)
    variables = [variable for variable in encoder.weights if variable.key in set(bridge.keys)]
    return {variable.key: numpy.array(values) for variable, values in zip(variables, read_all(variables), strict=True)}


def apply(
    encoder: SparseMixer,
    params: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    training: bool = False,
    key: Any = None,
    outputs: Sequence[str] = _OUTPUTS,
) -> dict[str, Any]:
    """Encode a batch with given parameters: a function that JAX can compile, differentiate and map.

    Reverse-mode derivatives exist with respect to `params` and floating-point inputs, once. `jax.vmap` makes one call
    after the other. Parameters that are as in the call before are not copied into the core again.

    Args:
        encoder: Says what is computed; its own weights have no part in it.
        params: What `init_params` returned, or what became of it.
        inputs: As `SparseMixer` takes them, B examples of S positions; other keys are ignored.
        training: Use the training capacity factor and dropout.
        key: A key of `jax.random`, for dropout and jitter; needed with `training` where the encoder has them.
        outputs: Names of the wanted outputs, as in a call of the encoder.

    Returns:
        float32 arrays of JAX: the `outputs`, as a call gives them; ``aux_loss``, a scalar to add to a training loss
        (the sum of what `SparseMixer.losses` has), and ``router_metrics``, a dict of arrays [num_moe_layers] without a
        gradient.

    Raises:
        ImportError: JAX is not installed.
        TypeError: `encoder` is none, or something is no dict.
        ValueError: Missing or unknown parameters, wrong shapes, a missing key, and as in a call of the encoder. What
            depends on values, such as ids outside the vocabulary, is raised by JAX when it runs the computation.
    """
    jax = require("jax", "jax")
    from sparse_mixer import _jax_op

    bridge = _bridge_of(encoder)
    weights = _read_params(bridge, params, jax)
    given = _read_inputs(encoder, inputs, jax)
    arguments = bridge.encoder.arguments
    train = as_bool("training", training)
    names = _read_outputs(outputs, arguments.with_pooler)
    # The last of the blocks' outputs is the sequence output.
    computed = tuple(name for name in names if name != "sequence_output" or "encoder_outputs" not in names)
    call = _jax_op.Call(bridge, tuple(given), tuple(weights), computed, train)
    found, aux = _jax_op.encode(call, [*given.values(), *weights.values()], _seed(arguments, train, key, jax))
    if "sequence_output" in names and "encoder_outputs" in names:
        found["sequence_output"] = found["encoder_outputs"][-1]
    metrics = jax.lax.stop_gradient(aux)
    return {
        **{name: found[name] for name in names},
        "aux_loss": aux[-1].sum(),
        "router_metrics": dict(zip(AUX_ROWS[:-1], metrics, strict=False)),
    }


def _bridge_of(encoder: Any) -> Bridge:
    """The bridge of `encoder`, made once."""
    if not isinstance(encoder, SparseMixer):
        raise TypeError(f"encoder: expected a SparseMixer, got {type(encoder).__name__}")
    if encoder.arguments.embedding_layer is not None:
        raise ValueError(
            "encoder: has an embedding layer of the caller's, which JAX cannot differentiate; build it without, look "
            "up rows in JAX and pass them as input_word_embeddings"
        )
    with _lock:
        if encoder not in _bridges:
            # A copy shares the weights until they change.
            _bridges[encoder] = Bridge(copy.copy(encoder))
        return _bridges[encoder]


def _read_params(bridge: Bridge, params: Any, jax: Any) -> dict[str, Any]:
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected a dict as init_params returns it, got {type(params).__name__}")
    missing = [key for key in bridge.keys if key not in params]
    unknown = sorted(set(map(str, params)) - set(bridge.keys))
    if missing or unknown:
        raise ValueError(f"params: missing {missing}, unknown {unknown}; expected the keys that init_params returns")
    weights = {}
    for variable in bridge.encoder.weights:
        array = jax.numpy.asarray(params[variable.key])
        if array.shape != variable.shape:
            raise ValueError(f"params[{variable.key!r}]: got shape {array.shape}, expected {variable.shape}")
        if not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            raise TypeError(f"params[{variable.key!r}]: got {array.dtype}, expected floating-point numbers")
        weights[variable.key] = array.astype(np.float32)
    return weights


def _read_inputs(encoder: SparseMixer, inputs: Any, jax: Any) -> dict[str, Any]:
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs: expected a dict, got {type(inputs).__name__}")
    given = {}
    for name in (*_INTEGERS, *_FLOATS):
        if inputs.get(name) is None or (name == "input_word_ids" and inputs.get("input_word_embeddings") is not None):
            continue
        array = jax.numpy.asarray(inputs[name])
        axes = 3 if name in ("input_word_embeddings", "dense_inputs") else 2
        if array.ndim != axes:
            raise ValueError(
                f"inputs[{name!r}]: got shape {array.shape}, expected {axes} axes; jax.vmap maps over more of them"
            )
        if name in _FLOATS:
            array = array.astype(np.float32)
        elif not jax.numpy.issubdtype(array.dtype, jax.numpy.integer):
            raise TypeError(f"inputs[{name!r}]: got {array.dtype}, expected integers")
        given[name] = array
    words = {"input_word_ids", "input_word_embeddings"} & set(given)
    needed = ["input_type_ids", *(["dense_type_ids"] if "dense_inputs" in given else [])]
    arguments = encoder.arguments
    if arguments.layers_within("attention_layers") and arguments.padding_id() is None:
        needed += ["input_mask", *(["dense_mask"] if "dense_inputs" in given else [])]
    for name in [*needed, *([] if words else ["input_word_ids"])]:
        if name not in given:
            raise ValueError(f"inputs: {name} is missing; there are {sorted(map(str, inputs))}")
    return given


def _read_outputs(outputs: Any, with_pooler: bool) -> list[str]:
    if outputs is _OUTPUTS and not with_pooler:
        outputs = [name for name in _OUTPUTS if name != "pooled_output"]
    names = as_strings("outputs", outputs, "names")
    unknown = sorted(set(names) - set(_OUTPUTS))
    if unknown:
        raise ValueError(f"outputs: got {unknown}, expected names among {list(_OUTPUTS)}")
    return list(dict.fromkeys(names))


def _seed(arguments: Any, training: bool, key: Any, jax: Any) -> Any:
    """uint32 [2] from a key."""
    rates = ("output_dropout", "attention_dropout", "jitter_noise", "expert_dropout")
    if not training or (key is None and not any(getattr(arguments, name) for name in rates)):
        return np.zeros(2, np.uint32)
    if key is None:
        drawn = [name for name in rates if getattr(arguments, name)]
        raise ValueError(f"key: the encoder has {', '.join(drawn)}; pass a key of jax.random")
    return jax.random.bits(key, (2,), np.uint32)
