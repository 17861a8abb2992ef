"""Differentiating a call of an encoder: vector-Jacobian products."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.checks import as_bool, as_float, as_list
from sparse_mixer._core.inputs import Inputs
from sparse_mixer._core.variables import Variable, as_float32
from sparse_mixer.gradients import INPUTS, Gradients

_OUTPUTS = ("sequence_output", "pooled_output", "encoder_outputs")


class OutputGradient:
    """The gradient of an output as a sum, in the core.

    Attributes:
        terms: Each with the position that it belongs to, or None for all positions.
    """

    def __init__(self, *terms: tuple[int | None, _native.CoreArray]) -> None:
        self.terms = list(terms)

    def numpy(self, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        """The sum, for an output of `shape`."""
        total = np.zeros(shape, np.float32)
        for position, term in self.terms:
            if position is None:
                total += term.numpy()
            else:
                total[:, position] += term.numpy()
        return total


class Requested(NamedTuple):
    """What a VJP is made for."""

    keys: frozenset[str]
    """Weights and inputs."""
    weights: list[bool]
    """One flag per weight."""
    rows: bool
    """Whether inputs are among them."""


def requested(wrt: Any, part: Any, arrays: Inputs) -> Requested:
    """Read `wrt`: keys of weights, variables, or names of floating-point inputs.

    Args:
        wrt: As in `SparseMixer.vjp`; None for all weights, and what floating-point inputs there are.
        part: The encoder.
        arrays: The inputs of the call.

    Raises:
        TypeError: Not a list of keys and variables.
        ValueError: A key that is none, a variable of something else, or an input that the call does not have.
    """
    keys = part.weight_keys
    given = {"input_word_embeddings": arrays.word_embeddings, "dense_inputs": arrays.dense_inputs}
    inputs = [name for name, array in given.items() if array is not None]
    names = [*keys, *inputs] if wrt is None else []
    for position, entry in enumerate([] if wrt is None else as_list("wrt", wrt, "keys or variables")):
        own = isinstance(entry, Variable) and any(entry is variable for variable in part.all_variables)
        if not own and not isinstance(entry, str):
            kind = repr(entry) if isinstance(entry, Variable) else type(entry).__name__
            raise_as = ValueError if isinstance(entry, Variable) else TypeError
            raise raise_as(f"wrt[{position}]: expected a key or a variable of this encoder, got {kind}")
        names.append(entry.key if own else entry)
        if names[-1] in INPUTS and names[-1] not in inputs:
            raise ValueError(f"wrt[{position}]: the inputs have no {names[-1]}")
        if names[-1] not in keys and names[-1] not in INPUTS:
            raise ValueError(f"wrt[{position}]: no weight is called {names[-1]!r}")
    return Requested(frozenset(names), [key in names for key in keys], any(name in names for name in inputs))


class VJP:
    """Maps gradients of a scalar with respect to an encoder's outputs to those with respect to its weights.

    Holds what the forward pass kept, and the weights it used, until it has been called, as TensorFlow's GradientTape
    does; with ``persistent=True`` until it is dropped, and may then be called more than once. It differentiates the
    call that was made, also after the encoder's weights have changed; these are copied if they change before.

    Attributes:
        aux: The call's auxiliary values, as in `SparseMixer.aux_losses`.
    """

    def __init__(self, encoder: Any, tape: _native.Tape, arrays: Inputs, wrt: Requested, aux: dict[str, Any]) -> None:
        self._encoder = encoder
        self._tape = tape
        self._wrt = wrt
        self.aux = aux
        self._shape = arrays.type_ids.shape
        # The first columns of the word rows, and the last ones.
        self._word_length = None if arrays.word_embeddings is None else arrays.word_embeddings.shape[1]
        self._dense_length = None if arrays.dense_inputs is None else arrays.dense_inputs.shape[1]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a VJP holds what a forward pass has computed, and cannot be copied or pickled: copy the encoder and the "
            "inputs, and call encoder.vjp there with the same seed; or call the VJP and copy the gradients"
        )

    def __repr__(self) -> str:
        batch, length = self._shape
        return f"<VJP of {self._encoder.name!r} for a batch of {batch} x {length}>"

    def __call__(
        self,
        d_outputs: Mapping[str, Any],
        aux_loss_weight: float = 1.0,
        *,
        into: Gradients | None = None,
        last: bool = False,
    ) -> Gradients:
        """Compute gradients.

        Args:
            d_outputs: Gradients with respect to ``sequence_output``, ``pooled_output`` and ``encoder_outputs`` (a list
                with one entry per block, None for zero), shaped as the outputs; what is missing counts as zero.
            aux_loss_weight: Factor of the encoder's auxiliary losses in the scalar that is differentiated.
            into: Gradients to add to; None makes new ones, which take over the memory of those that this thread has
                applied last: see `sparse_mixer.gradients.Gradients.of_a_step`.
            last: Whether what the forward pass kept is released although the VJP is persistent. It is released while
                the gradients are computed, which takes less memory than dropping the VJP later.

        Returns:
            A mapping from weight keys to arrays in Keras order: `into` if given. ``input_word_embeddings`` and
            ``dense_inputs`` are in it, too, if the call had them. Where the VJP was made for some weights or inputs
            (`wrt`), there are entries of these alone; entries that `into` has besides stay as they are.

        Raises:
            RuntimeError: Called a second time without ``persistent=True``.
            ValueError: An unknown output, a wrong shape, or `into` belongs to another encoder. It may be called again
                then.
            KeyboardInterrupt: Interrupted; what `into` then holds is unspecified.
        """
        if into is not None and not isinstance(into, Gradients):
            raise TypeError(f"into: expected Gradients, got {type(into).__name__}")
        cotangents = _read(d_outputs, aux_loss_weight)
        gradients = Gradients.of_a_step(self._encoder, self._wrt.keys) if into is None else into
        rows, _ = self._tape.backward(gradients.buffer_of(self._encoder), last=as_bool("last", last), **cotangents)
        gradients.inputs.update(self._of_inputs(rows))
        return gradients

    def arrays(
        self, d_outputs: Mapping[str, Any], aux_loss_weight: float = 1.0, *, last: bool = False
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Compute gradients as plain arrays, which belong to the caller; nothing is copied.

        The core hands over the memory that it has computed them in, and uses it again when the last of the arrays is
        gone. Each begins at a multiple of 64 bytes, which frameworks need to use it without a copy.

        Args:
            d_outputs: As in a call.
            aux_loss_weight: As there.
            last: As there.

        Returns:
            float32 arrays by key, of the weights in Keras order and then of inputs; zeros for weights that were not
            reached.

        Raises:
            RuntimeError, ValueError, KeyboardInterrupt: As a call.
        """
        rows, handed_over = self._tape.backward(last=as_bool("last", last), **_read(d_outputs, aux_loss_weight))
        assert handed_over is not None, "what is not added to other gradients comes back"
        memory, starts = handed_over
        values, keys = np.asarray(memory), self._wrt.keys
        specs = zip(self._encoder.weight_keys, self._encoder.core.weight_specs(), starts, strict=True)
        arrays = {
            key: values[start : start + math.prod(shape)].reshape(shape)
            for key, (_, shape), start in specs
            if key in keys
        }
        return arrays | self._of_inputs(rows)

    def _of_inputs(self, rows: npt.NDArray[np.float32] | None) -> dict[str, npt.NDArray[np.float32]]:
        """Gradients of the float inputs that are wanted, by name."""
        found, keys = {}, self._wrt.keys
        if rows is not None and self._word_length is not None and "input_word_embeddings" in keys:
            found["input_word_embeddings"] = rows[:, : self._word_length]
        if rows is not None and self._dense_length is not None and "dense_inputs" in keys:
            found["dense_inputs"] = rows[:, rows.shape[1] - self._dense_length :]
        return found


def _read(d_outputs: Mapping[str, Any], aux_loss_weight: float) -> dict[str, Any]:
    """Gradients of outputs, and the weight of the auxiliary losses, as the core takes them."""
    names = d_outputs if isinstance(d_outputs, Mapping) else [type(d_outputs).__name__]
    unknown = sorted({str(name) for name in names} - set(_OUTPUTS))
    if unknown:
        raise ValueError(f"d_outputs: got {unknown}, expected a dict with keys among {list(_OUTPUTS)}")
    given = {name: value for name, value in d_outputs.items() if value is not None}
    of_blocks = as_list("d_outputs['encoder_outputs']", given.pop("encoder_outputs", ()), "arrays")
    blocks = [
        None if block is None else _contiguous(f"d_outputs['encoder_outputs'][{layer}]", block)
        for layer, block in enumerate(of_blocks)
    ]
    return {
        "encoder_outputs": blocks or None,
        "aux_loss_weight": as_float("aux_loss_weight", aux_loss_weight),
        **{name: _terms(name, value) for name, value in given.items()},
    }


def _terms(name: str, value: Any) -> list[tuple[int | None, Any]]:
    if isinstance(value, OutputGradient):
        return value.terms
    return [(None, _contiguous(f"d_outputs[{name!r}]", value))]


def _contiguous(argument: str, value: Any) -> Any:
    return np.ascontiguousarray(as_float32(argument, value))
