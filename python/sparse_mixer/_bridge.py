"""What layers of other frameworks stand on: weights that live elsewhere, calls from any thread, gradients as arrays.

A `Bridge` holds an encoder whose weights are brought up to date before a call with whatever the framework's variables
hold then. It is built on `SparseMixer.forward` and `SparseMixer.vjp`.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.router_metrics import METRIC_NAMES
from sparse_mixer._core.variables import Variable, assign_all
from sparse_mixer._core.vjp import VJP
from sparse_mixer.networks import SparseMixer

Array = npt.NDArray[Any]

AUX_ROWS = (*METRIC_NAMES, "loss")
"""Rows of `Result.aux`: the router metrics in TensorFlow's order, then the weighted loss of each block."""

_REMEMBERED = 2
"""Records that are kept for tokens: two towers are differentiated without computing a call again. Each may be large."""

WORD_TABLE = "word_embeddings/embeddings"
"""Key of the word table, which the framework keeps and reads itself."""


class Result(NamedTuple):
    """What a call gives.

    Attributes:
        outputs: As `SparseMixer` gives them.
        aux: float32 [7, num_moe_layers]; see `AUX_ROWS`.
        vjp: The function that differentiates the call, if it was recorded.
    """

    outputs: Mapping[str, Any]
    aux: Array
    vjp: VJP | None


class Bridge:
    """An encoder whose weights are brought up to date before each call.

    Attributes:
        encoder: The encoder; nobody else changes its weights.
        keys: Keys of the weights that calls take, in Keras order.
    """

    def __init__(self, encoder: SparseMixer) -> None:
        """A bridge for `encoder`, which belongs to it from now on."""
        self.encoder = encoder
        self._variables = {variable.key: variable for variable in encoder.weights if isinstance(variable, Variable)}
        self.keys = list(self._variables)
        self._held: dict[str, Array] = {}
        self._records: dict[int, VJP] = {}
        self._numbers = itertools.count(1)
        self._remembered: dict[int, VJP] = {}
        # A token may come back in another process.
        self._nonce = os.urandom(8)
        self._lock = threading.RLock()

    @property
    def num_moe_layers(self) -> int:
        """How many blocks have a mixture of experts."""
        return len(self.encoder.arguments.layers_within("moe_layers"))

    def run(
        self,
        inputs: Mapping[str, Array],
        weights: Mapping[str, Array],
        *,
        training: bool,
        seed: int,
        outputs: Sequence[str],
        wrt: Sequence[str] | None = None,
        hold: bool = True,
    ) -> Result:
        """Compute a call with given weights.

        Args:
            inputs: As `SparseMixer` takes them.
            weights: float32 arrays by key, all of `keys`.
            training: As there.
            seed: As there.
            outputs: As there.
            wrt: Record the call, to be differentiated with respect to these weights and inputs; None for no record.
            hold: Weights are held by reference. An array whose memory is that of the one held for its key has not
                changed. That needs frameworks which write to memory in place only while nobody else holds it, as
                TensorFlow does. Without it, arrays are compared with what the core has, number by number.
        """
        # One call at a time: the weights must not change between here and the core's snapshot of them.
        with self._lock:
            self._update(weights, hold)
            vjp: VJP | None = None
            if wrt is not None:
                results, vjp = self.encoder.vjp(inputs, training=training, seed=seed, outputs=outputs, wrt=wrt)
                aux = vjp.aux
            else:
                results, aux = self.encoder.forward(inputs, training=training, seed=seed, outputs=outputs)
        return Result(results, self._aux(aux), vjp)

    def differentiate(
        self, vjp: VJP, d_outputs: Mapping[str, Any], d_aux: Array | None, names: Sequence[str]
    ) -> list[Array]:
        """Gradients of the weights and float inputs `names`.

        Args:
            vjp: Of the call.
            d_outputs: Gradients of outputs, as `VJP` takes them.
            d_aux: Gradient of ``aux``; None for zero. The metrics have none, and those of the losses must be equal.
            names: Keys of weights, and names of inputs.

        Raises:
            ValueError: The losses of different blocks are weighted differently.
        """
        weight = 0.0 if d_aux is None else _one_weight(d_aux[-1])
        gradients = vjp.arrays(d_outputs, aux_loss_weight=weight)
        # An optimizer is going to change the weights, which costs it a copy of what is held here.
        self.release()
        return [gradients[name] for name in names]

    def release(self) -> None:
        """Let go of the weights' memory; the next call copies all weights."""
        with self._lock:
            self._held.clear()

    # Records that a graph refers to by number ---------------------------------------------------------------------

    def keep(self, vjp: VJP | None) -> Array:
        """A handle, int64 [1], that `take` gives the record for; 0 for none.

        The record lives as long as the array: a graph that never differentiates drops both.
        """
        # A framework that finds the memory aligned keeps the array itself alive; else it copies the number.
        memory = np.zeros(16, np.int64)
        start = -memory.ctypes.data % 64 // 8
        handle = memory[start : start + 1]
        if vjp is not None:
            number = next(self._numbers)
            self._records[number] = vjp
            weakref.finalize(handle, self._records.pop, number, None).atexit = False
            handle[0] = number
        return handle

    def take(self, handle: Array) -> VJP | None:
        """The record behind a handle, once; None if there is none, or no longer."""
        return self._records.pop(int(handle[0]), None)

    # Records of frameworks that may drop, repeat and reorder calls ------------------------------------------------

    def remember(self, vjp: VJP) -> Array:
        """A token, uint32 [4], that `recall` gives the record for, once; only the last `_REMEMBERED` can be had."""
        with self._lock:
            number = next(self._numbers)
            self._remembered[number] = vjp
            dropped = [self._remembered.pop(old) for old in list(self._remembered)[:-_REMEMBERED]]
        # Records are large; outside the lock.
        del dropped
        return np.frombuffer(self._nonce + number.to_bytes(8, "little"), np.uint32)

    def recall(self, token: Array) -> VJP | None:
        """The record behind a token; None if it has been given before, or no longer is there, or was another's."""
        content = np.asarray(token, np.uint32).tobytes()
        if content[:8] != self._nonce:
            return None
        with self._lock:
            return self._remembered.pop(int.from_bytes(content[8:], "little"), None)

    # ---------------------------------------------------------------------------------------------------------------

    def _update(self, weights: Mapping[str, Array], hold: bool) -> None:
        if not hold:
            self._held.clear()
            variables = [self._variables[key] for key in weights]
            self.encoder.core.assign_changed([variable.index for variable in variables], list(weights.values()))
            return
        changed = {key: array for key, array in weights.items() if not _same_memory(self._held.get(key), array)}
        if changed:
            assign_all([self._variables[key] for key in changed], list(changed.values()))
            self._held.update(changed)

    def _aux(self, values: Mapping[str, Any]) -> Array:
        aux = np.zeros((len(AUX_ROWS), self.num_moe_layers), np.float32)
        # An empty batch has no values.
        if len(values["moe_layers"]):
            for row, name in enumerate(METRIC_NAMES):
                aux[row] = values[name]
            factor = self.encoder.arguments.auxiliary_loss_factor
            aux[-1] = values["router_z_loss"] + factor * values["load_balancing_loss"]
        return aux


class InnerBridge(Bridge):
    """A bridge for what is between word rows and pooler.

    The framework looks up word rows itself, in a table or layer of its own, and computes the pooler, a dense layer on
    the first position; so both get their gradients the framework's way. The encoder has no word table of its own.
    """

    def __init__(self, config: Mapping[str, Any], num_threads: int | None = None, isa: str | None = None) -> None:
        """A bridge for an encoder.

        Args:
            config: What its `get_config` returns.
            num_threads: As in the constructor.
            isa: As in the constructor.
        """
        changes: dict[str, Any] = {"embedding_layer": _no_rows, "initializer": "zeros", "export_metrics": False}
        self._arguments = {**config, **changes, "num_threads": num_threads, "isa": isa}
        super().__init__(SparseMixer(**self._arguments))
        self.keys = [key for key in self.keys if not key.startswith("pooler_transform/")]

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = dict(self._arguments)
        num_threads, isa = arguments.pop("num_threads"), arguments.pop("isa")
        return InnerBridge, (arguments, num_threads, isa)


def _no_rows(_ids: Any) -> Any:
    """The embedding layer of an encoder that is always given word rows."""
    raise ValueError("input_word_embeddings: missing")


def _same_memory(held: Array | None, array: Array) -> bool:
    return held is not None and held.__array_interface__["data"][0] == array.__array_interface__["data"][0]


def _one_weight(d_losses: Array) -> float:
    if d_losses.size == 0:
        return 0.0
    if np.ptp(d_losses) > 1e-6 * np.abs(d_losses).max():
        raise ValueError(
            f"losses: their gradients are {d_losses.tolist()}; the auxiliary losses of all blocks have to be added "
            "with one and the same factor"
        )
    return float(d_losses[0])
