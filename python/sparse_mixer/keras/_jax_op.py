"""The encoder as one differentiable operation of JAX: a callback with a gradient of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sparse_mixer._bridge import AUX_ROWS, Bridge, Result


def encode(
    bridge: Bridge,
    inputs: Mapping[str, Any],
    weights: Mapping[str, Any],
    wanted: Sequence[str],
    training: bool,
    seed: Any,
) -> tuple[list[Any], Any, Any]:
    """The outputs of a call, differentiable with respect to `wanted`.

    JAX may call back as often as it likes, or not at all, so nothing is kept from one callback to the next: the call is
    computed again for its gradient.

    Args:
        bridge: The encoder.
        inputs: Arrays by the names that `sparse_mixer.SparseMixer` takes, with word rows in place of ids.
        weights: float32 arrays by key.
        wanted: Names of the float inputs and weights that gradients are for.
        training: As in a call.
        seed: int32 scalar.

    Returns:
        Output of every block, sequence output, and `Result.aux`.
    """
    names = [*inputs, *weights]
    arguments = bridge.encoder.arguments
    batch, length = inputs["input_type_ids"].shape
    length += inputs["dense_type_ids"].shape[1] if "dense_type_ids" in inputs else 0
    cut = arguments.output_range is not None and arguments.semantics != "keras_strict"
    last = min(length, arguments.output_range or length) if cut else length
    lengths = [*[length] * (arguments.num_layers - 1), last, *([last] if cut else [])]
    shapes = [(len(AUX_ROWS), bridge.num_moe_layers), *((batch, rows, arguments.hidden_size) for rows in lengths)]
    results = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]

    def run(seed: Any, arrays: Sequence[Any], wrt: Sequence[str] | None) -> Result:
        pairs = list(zip(names, map(np.asarray, arrays), strict=True))
        given, values = dict(pairs[: len(inputs)]), dict(pairs[len(inputs) :])
        # The memory behind a callback's arrays is JAX's to use again.
        return bridge.run(given, values, training=training, seed=int(seed), wrt=wrt, hold=False)

    def forward(seed: Any, *arrays: Any) -> list[Any]:
        result = run(seed, arrays, None)
        return [result.aux, *result.blocks, *([result.sequence] if cut else [])]

    def backward(seed: Any, *arrays: Any) -> list[Any]:
        given, d_outputs = arrays[: len(names)], [np.asarray(d) for d in arrays[len(names) :]]
        d_aux, *d_blocks = d_outputs
        d_sequence = d_blocks.pop() if cut else None
        vjp = run(seed, given, wanted).vjp
        if vjp is None:
            raise ValueError("SparseMixer: there is nothing to differentiate")
        return bridge.differentiate(vjp, d_sequence, d_blocks, d_aux, wanted)

    @jax.custom_vjp
    def operation(seed: Any, *arrays: Any) -> Any:
        return jax.pure_callback(forward, results, seed, *arrays)

    def keep(seed: Any, *arrays: Any) -> Any:
        return operation(seed, *arrays), (seed, arrays)

    def differentiate(kept: Any, d_outputs: Any) -> Any:
        seed, arrays = kept
        by_name = dict(zip(names, arrays, strict=True))
        found: dict[str, Any] = {}
        if wanted:
            kinds = [jax.ShapeDtypeStruct(by_name[name].shape, np.float32) for name in wanted]
            gradients = jax.pure_callback(backward, kinds, seed, *arrays, *d_outputs)
            found = dict(zip(wanted, gradients, strict=True))
        return (_no_gradient(seed), *(found.get(name, _no_gradient(array)) for name, array in by_name.items()))

    operation.defvjp(keep, differentiate)
    aux, *blocks = operation(seed, *inputs.values(), *weights.values())
    sequence = blocks.pop() if cut else blocks[-1]
    return blocks, sequence, aux


def _no_gradient(array: Any) -> Any:
    if np.issubdtype(array.dtype, np.floating):
        return jax.numpy.zeros_like(array)
    return np.zeros(array.shape, jax.dtypes.float0)
