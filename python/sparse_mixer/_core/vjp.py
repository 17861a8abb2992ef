"""Differentiating a call of an encoder: vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_mixer import _native
from sparse_mixer._core.inputs import Inputs
from sparse_mixer._core.variables import as_float32
from sparse_mixer.gradients import Gradients

_OUTPUTS = ("sequence_output", "pooled_output", "encoder_outputs")


class VJP:
    """Maps gradients of a scalar with respect to an encoder's outputs to those with respect to its weights.

    Holds what the forward pass kept, and the weights it used, until it has been called, as TensorFlow's GradientTape
    does; with ``persistent=True`` until it is dropped, and may then be called more than once. It differentiates the
    call that was made, also after the encoder's weights have changed; these are copied if they change before.
    """

    def __init__(self, encoder: Any, tape: _native.Tape, arrays: Inputs) -> None:
        self._encoder = encoder
        self._tape = tape
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
        self, d_outputs: Mapping[str, Any], aux_loss_weight: float = 1.0, *, into: Gradients | None = None
    ) -> Gradients:
        """Compute gradients.

        Args:
            d_outputs: Gradients with respect to ``sequence_output``, ``pooled_output`` and ``encoder_outputs`` (a list
                with one entry per block, None for zero), shaped as the outputs; what is missing counts as zero.
            aux_loss_weight: Factor of the encoder's auxiliary losses in the scalar that is differentiated.
            into: Gradients to add to; None makes new ones.

        Returns:
            A mapping from weight keys to arrays in Keras order: `into` if given. ``input_word_embeddings`` and
            ``dense_inputs`` are in it, too, if the call had them.

        Raises:
            RuntimeError: Called a second time without ``persistent=True``.
            ValueError: An unknown output, a wrong shape, or `into` belongs to another encoder. It may be called again
                then.
            KeyboardInterrupt: Interrupted; what `into` then holds is unspecified.
        """
        if into is not None and not isinstance(into, Gradients):
            raise TypeError(f"into: expected Gradients, got {type(into).__name__}")
        names = d_outputs if isinstance(d_outputs, Mapping) else [type(d_outputs).__name__]
        unknown = sorted({str(name) for name in names} - set(_OUTPUTS))
        if unknown:
            raise ValueError(f"d_outputs: got {unknown}, expected a dict with keys among {list(_OUTPUTS)}")
        given = {name: value for name, value in d_outputs.items() if value is not None}
        blocks = [
            None if block is None else _contiguous(f"d_outputs['encoder_outputs'][{layer}]", block)
            for layer, block in enumerate(given.pop("encoder_outputs", ()))
        ]
        cotangents = {name: _contiguous(f"d_outputs[{name!r}]", value) for name, value in given.items()}
        gradients = Gradients(self._encoder) if into is None else into
        rows = self._tape.backward(
            gradients.buffer_of(self._encoder),
            encoder_outputs=blocks or None,
            aux_loss_weight=float(aux_loss_weight),
            **cotangents,
        )
        if self._word_length is not None:
            gradients.inputs["input_word_embeddings"] = rows[:, : self._word_length]
        if self._dense_length is not None:
            gradients.inputs["dense_inputs"] = rows[:, rows.shape[1] - self._dense_length :]
        return gradients


def _contiguous(argument: str, value: Any) -> Any:
    return np.ascontiguousarray(as_float32(argument, value))
