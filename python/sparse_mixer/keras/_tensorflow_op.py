"""The encoder as one differentiable operation of TensorFlow, in eager mode and in graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from sparse_mixer._bridge import AUX_ROWS, Bridge, Result

# XLA's error names the operation that it cannot compile, so the operation's name says what to do.
_NAME = "SparseMixer_runs_outside_TensorFlow_and_cannot_be_compiled_by_XLA_use_jit_compile_False"


class Call(NamedTuple):
    """One call of an encoder.

    Attributes:
        inputs: Tensors by the names that `sparse_mixer.SparseMixer` takes.
        weights: float32 tensors by key.
        frozen: Keys of weights that get no gradient.
        training: bool or boolean scalar tensor.
        seed: int64 scalar tensor.
    """

    inputs: Mapping[str, Any]
    weights: Mapping[str, Any]
    frozen: frozenset[str]
    training: Any
    seed: Any


class Outputs(NamedTuple):
    """Tensors: output of every block, of which the last is the sequence output, and `Result.aux` of the bridge."""

    blocks: list[Any]
    aux: Any


def encode(bridge: Bridge, call: Call) -> Outputs:
    """The outputs of a call, differentiable with respect to floating-point inputs and weights.

    A call with ``training=True`` is recorded, since a gradient will follow. Another is not: if there is a gradient
    after all, the call is computed again for it.
    """
    names = [*call.inputs, *call.weights]
    tensors = [*call.inputs.values(), *call.weights.values()]
    number_of_inputs = len(call.inputs)
    wanted = [
        name
        for name, tensor in zip(names, tensors, strict=True)
        if (tensor.dtype.is_floating and name not in call.frozen and not name.endswith("mask"))
    ]
    num_blocks = bridge.encoder.arguments.num_layers
    record = call.training is not False and bool(wanted)

    def named(arrays: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        pairs = list(zip(names, arrays, strict=True))
        return dict(pairs[:number_of_inputs]), dict(pairs[number_of_inputs:])

    def forward(seed: Any, training: Any, *arrays: Any) -> tuple[list[Any], Any]:
        inputs, weights = named(arrays)
        train = bool(training)
        result = run(inputs, weights, train, seed, wanted if record and train else None)
        return [result.aux, *result.outputs["encoder_outputs"]], result.vjp

    def run(inputs: Any, weights: Any, training: bool, seed: Any, wrt: Sequence[str] | None) -> Result:
        outputs = ("encoder_outputs",)
        return bridge.run(inputs, weights, training=training, seed=int(seed), outputs=outputs, wrt=wrt)

    def backward(vjp: Any, seed: Any, training: Any, arrays: Sequence[Any], d_outputs: Sequence[Any]) -> list[Any]:
        if vjp is None:
            inputs, weights = named(arrays)
            vjp = run(inputs, weights, bool(training), seed, wanted).vjp
        d_aux, *d_blocks = d_outputs
        # TensorFlow gives zeros for outputs that nobody used.
        cotangents = {"encoder_outputs": [d if d.any() else None for d in d_blocks]}
        return bridge.differentiate(vjp, cotangents, d_aux, wanted)

    @tf.custom_gradient
    def operation(seed: Any, training: Any, *given: Any) -> Any:
        if tf.executing_eagerly():
            arrays = [_view(tensor) for tensor in given]
            outputs, vjp = forward(seed, training, *arrays)
            records = [vjp]
            handle = None
        else:
            handle, *outputs = tf.numpy_function(
                _with_handle(bridge, forward), [seed, training, *given], [tf.int64] + [tf.float32] * count, name=_NAME
            )
        results = [tf.convert_to_tensor(output) for output in outputs]

        def gradient(*d_outputs: Any) -> list[Any]:
            @tf.custom_gradient
            def first_order(*_tensors: Any) -> Any:
                if tf.executing_eagerly():
                    vjp = records.pop() if records else None
                    arrays = [] if vjp is not None else [_view(tensor) for tensor in given]
                    found = backward(vjp, seed, training, arrays, [_view(d) for d in d_outputs])
                    gradients = [tf.convert_to_tensor(array) for array in found]
                else:
                    gradients = tf.numpy_function(
                        lambda handle, seed, training, *arrays: backward(
                            bridge.take(handle), seed, training, arrays[count:], arrays[:count]
                        ),
                        [handle, seed, training, *d_outputs, *given],
                        [tf.float32] * len(wanted),
                        name=_NAME,
                    )
                return gradients, _second_order

            gradients = first_order(*d_outputs, *given) if wanted else []
            by_name = dict(zip(wanted, gradients if isinstance(gradients, list | tuple) else [gradients], strict=True))
            found = [by_name.get(name) for name in names]
            for tensor, value in zip(given, found, strict=True):
                if value is not None:
                    value.set_shape(tensor.shape)
            return [None, None, *found]

        return results, gradient

    count = 1 + num_blocks
    training = call.training if tf.is_tensor(call.training) else tf.constant(bool(call.training))
    aux, *blocks = operation(call.seed, training, *tensors)
    _set_shapes(bridge, call, aux, blocks)
    return Outputs(blocks, aux)


def _with_handle(bridge: Bridge, forward: Any) -> Any:
    def run(*arrays: Any) -> list[Any]:
        outputs, vjp = forward(*arrays)
        return [bridge.keep(vjp), *outputs]

    return run


def _view(tensor: Any) -> Any:
    """An array on the tensor's memory, which it keeps alive."""
    if tensor.dtype == tf.bool:
        return tensor.numpy()
    return np.asarray(memoryview(tensor))


def _second_order(*_gradients: Any) -> Any:
    raise NotImplementedError(
        "SparseMixer: gradients of gradients are not available; encoder.to_tensorflow() builds a layer that has them"
    )


def _set_shapes(bridge: Bridge, call: Call, aux: Any, blocks: Sequence[Any]) -> None:
    """Say what a callback's outputs look like: the batch is that of the inputs, the rest follows from the arguments."""
    arguments = bridge.encoder.arguments
    batch = call.inputs["input_word_embeddings"].shape[0]
    lengths = [call.inputs[name].shape[1] for name in ("input_word_embeddings", "dense_inputs") if name in call.inputs]
    length, width = None if None in lengths else sum(lengths), arguments.hidden_size
    aux.set_shape([len(AUX_ROWS), bridge.num_moe_layers])
    for block in blocks[:-1]:
        block.set_shape([batch, length, width])
    cut = arguments.output_range is not None and arguments.semantics != "keras_strict"
    last = min(length, arguments.output_range) if cut and length is not None else length
    blocks[-1].set_shape([batch, last, width])
