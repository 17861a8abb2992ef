"""The encoder as one differentiable operation of JAX: callbacks with a gradient of their own.

A forward pass that will be differentiated leaves its record with the bridge and a token among its outputs; the backward
callback fetches the record by the token. JAX may drop, repeat and reorder callbacks: where the record is gone, the
backward callback computes the forward pass again from its own arguments.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero

from sparse_mixer._bridge import AUX_ROWS, Bridge, Result

Shapes = list[jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Call:
    """What a call consists of beside arrays. Equal ones share what JAX has compiled.

    Attributes:
        bridge: The encoder.
        inputs: Names of the inputs, as `sparse_mixer.SparseMixer` takes them.
        weights: Keys of the weights.
        outputs: Names of the outputs, as there; ``encoder_outputs``, whose last is the sequence output, instead of
            ``sequence_output`` or not.
        training: As there.
    """

    bridge: Bridge
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    training: bool

    def shapes(self, batch: int, length: int) -> Shapes:
        """Of `Result.aux` and the outputs, those of every block one by one."""
        arguments = self.bridge.encoder.arguments
        width, last = arguments.hidden_size, length
        if arguments.output_range is not None and arguments.semantics != "keras_strict":
            last = min(length, arguments.output_range)
        shapes: list[tuple[int, ...]] = [(len(AUX_ROWS), self.bridge.num_moe_layers)]
        for name in self.outputs:
            if name == "encoder_outputs":
                shapes += [(batch, length, width)] * (arguments.num_layers - 1)
            shapes.append((batch, width) if name == "pooled_output" else (batch, last, width))
        return [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]

    def named(self, flat: Sequence[Any]) -> dict[str, Any]:
        """Outputs by name, of those that `shapes` lists, without ``aux``."""
        blocks = self.bridge.encoder.arguments.num_layers
        found: dict[str, Any] = {}
        rest = list(flat)
        for name in self.outputs:
            count = blocks if name == "encoder_outputs" else 1
            own, rest = rest[:count], rest[count:]
            found[name] = own if name == "encoder_outputs" else own[0]
        return found

    def run(self, seed: Any, arrays: Sequence[Any], wrt: Sequence[str] | None) -> Result:
        """The call with what a callback is given."""
        # Whatever JAX would compute in a callback may wait for the callback to end: nothing but numpy from here on.
        given = [np.ascontiguousarray(np.asarray(array)) for array in arrays]
        high, low = (int(half) for half in np.asarray(seed))
        return self.bridge.run(
            dict(zip(self.inputs, given, strict=False)),
            dict(zip(self.weights, given[len(self.inputs) :], strict=True)),
            training=self.training,
            seed=high << 32 | low,
            outputs=self.outputs,
            wrt=wrt,
            # The memory behind a callback's arrays is JAX's to use again.
            hold=False,
        )


@dataclasses.dataclass(frozen=True)
class _Forward:
    """Callback of a forward pass, with a record for the gradients of `wanted`, if there are any."""

    call: Call
    wanted: tuple[str, ...]

    def __call__(self, seed: Any, *arrays: Any) -> list[Any]:
        result = self.call.run(seed, arrays, self.wanted or None)
        token = np.zeros(4, np.uint32) if result.vjp is None else self.call.bridge.remember(result.vjp)
        flat: list[Any] = [token, result.aux]
        for name in self.call.outputs:
            output = result.outputs[name]
            flat += output if isinstance(output, list) else [output]
        return flat


@dataclasses.dataclass(frozen=True)
class _Backward:
    """Callback for the gradients of `wanted`; `given` says which outputs, and ``aux`` before them, have one."""

    call: Call
    wanted: tuple[str, ...]
    given: tuple[bool, ...]

    def __call__(self, token: Any, seed: Any, arrays: Sequence[Any], gradients: Sequence[Any]) -> list[Any]:
        vjp = self.call.bridge.recall(np.asarray(token)) or self.call.run(seed, arrays, self.wanted).vjp
        assert vjp is not None, "it was asked for"
        rest = iter(np.asarray(gradient) for gradient in gradients)
        d_aux, *d_outputs = [next(rest) if flag else None for flag in self.given]
        return self.call.bridge.differentiate(vjp, self.call.named(d_outputs), d_aux, self.wanted)


def encode(call: Call, arrays: Sequence[Any], seed: Any) -> tuple[dict[str, Any], Any]:
    """Outputs by name, and `Result.aux`, differentiable with respect to floating-point inputs and weights.

    Args:
        call: What is called.
        arrays: The inputs, then the weights (float32), in the order of their names there.
        seed: uint32 [2], the more significant half first.
    """
    aux, *flat = _operation(call, seed, *arrays)
    return call.named(flat), aux


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _operation(call: Call, seed: Any, *arrays: Any) -> list[Any]:
    return _forward(call, (), seed, arrays)[1:]


def _forward(call: Call, wanted: tuple[str, ...], seed: Any, arrays: Sequence[Any]) -> list[Any]:
    by_name = dict(zip(call.inputs, arrays, strict=False))
    batch, length = by_name["input_type_ids"].shape
    length += by_name["dense_type_ids"].shape[1] if "dense_type_ids" in by_name else 0
    results = [jax.ShapeDtypeStruct((4,), np.uint32), *call.shapes(batch, length)]
    return _callback(_Forward(call, wanted), results, seed, *arrays)


def _record(call: Call, seed: Any, *arrays: Any) -> Any:
    names = (*call.inputs, *call.weights)
    wanted = tuple(name for name, array in zip(names, arrays, strict=True) if array.perturbed and _has_gradient(name))
    values = [array.value for array in arrays]
    token, *results = _forward(call, wanted, seed.value, values)
    # Which names are wanted is in the structure of what is kept, where JAX leaves it alone.
    return results, (token, seed.value, values, dict.fromkeys(wanted))


def _differentiate(call: Call, kept: Any, gradients: Sequence[Any]) -> tuple[Any, ...]:
    token, seed, values, flags = kept
    names, given = (*call.inputs, *call.weights), tuple(not isinstance(d, SymbolicZero) for d in gradients)
    # A dict comes back sorted.
    wanted = tuple(name for name in names if name in flags)
    found: dict[str, Any] = {}
    if wanted and any(given):
        by_name = dict(zip(names, values, strict=True))
        kinds = [jax.ShapeDtypeStruct(by_name[name].shape, np.float32) for name in wanted]
        d_outputs = [d for d, flag in zip(gradients, given, strict=True) if flag]
        backward = _Backward(call, wanted, given)
        found = dict(zip(wanted, _callback(backward, kinds, token, seed, values, d_outputs), strict=True))
    return (None, *(found.get(name) for name in names))


_operation.defvjp(_record, _differentiate, symbolic_zeros=True)


def _callback(function: Any, results: Shapes, *arguments: Any) -> list[Any]:
    """Arrays that `function` computes, which have no derivative of their own."""

    # The examples of a vmap are calls of their own: together they would be routed, and draw random numbers, as one.
    def compute(*arguments: Any) -> Any:
        return jax.pure_callback(function, results, *arguments, vmap_method="sequential")

    once = jax.custom_jvp(compute)
    once.defjvp(_refuse_second_order)
    found: list[Any] = once(*arguments)
    return found


def _refuse_second_order(*_arguments: Any) -> Any:
    raise NotImplementedError("SparseMixer: gradients of gradients are not available in JAX")


def _has_gradient(name: str) -> bool:
    return not name.endswith(("mask", "_ids"))
