"""The encoder behind a module: brought up to date with the module's parameters, called, and differentiated."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sparse_mixer._core.router_metrics import METRIC_NAMES
from sparse_mixer._core.variables import Variable, assign_all
from sparse_mixer._core.vjp import VJP
from sparse_mixer.gradients import INPUTS
from sparse_mixer.networks import SparseMixer

Array = npt.NDArray[Any]

AUX_METRICS = (*METRIC_NAMES, "expert_load")
"""Names of the auxiliary values of a call that have no gradient."""

engines: weakref.WeakValueDictionary[str, Engine] = weakref.WeakValueDictionary()
"""All engines by their names, by which compiled graphs refer to them."""

_numbers = itertools.count(1)


class Results(NamedTuple):
    """What a call gives.

    Attributes:
        outputs: float32 arrays: output of every block but the last (if wanted), sequence output, pooled output.
        total: Sum of the weighted auxiliary losses, scalar.
        metrics: float32 [6, num_moe_layers]; rows as the first `AUX_METRICS`.
        expert_load: float32 [num_moe_layers, num_experts].
        vjp: The function that differentiates the call; None if not asked for.
    """

    outputs: list[Array]
    total: Array
    metrics: Array
    expert_load: Array
    vjp: VJP | None


class _Known(NamedTuple):
    """A parameter's state when its values were last copied into the core."""

    tensor: weakref.ref[Any]
    version: int
    address: int
    values: Array
    place: int
    probe: float


class Engine:
    """The encoder of one module.

    Calls may come from several threads. Parameters that have changed since the last call are copied into the core.

    Attributes:
        name: By which `engines` finds it.
        keys: Keys of the parameters, in Keras order.
        shapes: Their shapes by key.
    """

    def __init__(self, encoder: SparseMixer, owned: bool) -> None:
        """An engine with the weights of `encoder`, which belongs to it from now on if `owned`, else is copied."""
        self._encoder = encoder if owned else copy.copy(encoder)
        self.arguments = encoder.arguments
        self._variables = variables_of(self._encoder)
        self.keys = [variable.key for variable in self._variables]
        self.shapes = {variable.key: variable.shape for variable in self._variables}
        config = json.dumps(encoder.get_config(), sort_keys=True, default=repr)
        self.name = f"{hashlib.blake2b(config.encode(), digest_size=8).hexdigest()}-{next(_numbers)}"
        self._known: list[_Known] | None = None
        self._lock = threading.Lock()
        self._records: dict[int, VJP] = {}
        self._record_numbers = itertools.count(1)
        engines[self.name] = self

    # Weights ------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Copy all parameters into the core before the next call, whatever is known of them."""
        with self._lock:
            self._known = None

    def believe(self, tensors: Sequence[Any]) -> None:
        """Take the parameters for what the core holds already."""
        with self._lock:
            self._known = [_know(tensor) for tensor in tensors]

    def snapshot(self, tensors: Sequence[Any]) -> SparseMixer:
        """An encoder of its own with the parameters' values."""
        self._update(tensors)
        return copy.deepcopy(self._encoder)

    def _update(self, tensors: Sequence[Any]) -> None:
        """Copy into the core what has changed."""
        with self._lock:
            if changed := self._changed(tensors):
                found = {place: _know(tensors[place]) for place in changed}
                assign_all([self._variables[place] for place in changed], [known.values for known in found.values()])
                before = self._known or []
                self._known = [found.get(place) or before[place] for place in range(len(tensors))]

    def _changed(self, tensors: Sequence[Any]) -> Sequence[int]:
        """Places of the parameters that may differ from what the core holds."""
        if self._known is None:
            return range(len(tensors))
        changed = []
        try:
            for place, (known, tensor) in enumerate(zip(self._known, tensors, strict=True)):
                if (
                    known.version != tensor._version
                    or known.address != tensor.data_ptr()
                    or known.tensor() is not tensor
                ):
                    changed.append(place)
                elif known.values.item(known.place) != known.probe:
                    # Somebody writes past the version counter, through `.data` or numpy: to how many, nobody can say.
                    return range(len(tensors))
        except RuntimeError:
            # Tensors of inference mode count no versions.
            return range(len(tensors))
        return changed

    # Calls --------------------------------------------------------------------------------------------------------

    def run(
        self,
        inputs: Mapping[str, Any],
        tensors: Sequence[Any],
        *,
        training: bool,
        seed: int,
        wanted: Sequence[str],
        outputs: Sequence[str],
    ) -> Results:
        """Compute a call.

        Args:
            inputs: As `sparse_mixer.SparseMixer` takes them.
            tensors: The parameters in the order of `keys`.
            training: As there.
            seed: As there.
            wanted: Keys of parameters and names of inputs that gradients are wanted for; none for no record.
            outputs: Names of outputs, as there.
        """
        names = core_outputs(outputs)
        vjp: VJP | None = None
        self._update(tensors)
        if wanted:
            # All of them, where it is so: looking each up takes longer.
            floats = [name for name in INPUTS if inputs.get(name) is not None]
            wrt = None if len(wanted) == len(self.keys) + len(floats) else wanted
            results, vjp = self._encoder.vjp(
                inputs, training=training, seed=seed, outputs=names, persistent=True, wrt=wrt
            )
            aux = vjp.aux
        else:
            results, aux = self._encoder.forward(inputs, training=training, seed=seed, outputs=names)
        arrays: list[Array] = []
        if "encoder_outputs" in names:
            arrays += results["encoder_outputs"]
        elif "sequence_output" in names:
            arrays.append(results["sequence_output"])
        if "pooled_output" in names:
            arrays.append(results["pooled_output"])
        metrics, load = np.zeros((len(METRIC_NAMES), self.num_moe_layers), np.float32), aux["expert_load"]
        # An empty batch has none.
        if len(aux["moe_layers"]):
            for row, name in enumerate(METRIC_NAMES):
                metrics[row] = aux[name]
        else:
            load = np.zeros((self.num_moe_layers, self.arguments.num_experts), np.float32)
        return Results(arrays, aux["total"], metrics, load, vjp)

    @property
    def num_moe_layers(self) -> int:
        """How many blocks have a mixture of experts."""
        return len(self.arguments.layers_within("moe_layers"))

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return int(self.arguments.num_layers)

    def keep(self, record: VJP | None) -> Any:
        """A tensor int64 [1] that `take` gives the record for, which lives as long as the tensor's memory."""
        number = np.zeros(1, np.int64)
        if record is not None:
            number[0] = next(self._record_numbers)
            self._records[int(number[0])] = record
            weakref.finalize(number, self._records.pop, int(number[0]), None).atexit = False
        return torch.from_numpy(number)

    def take(self, handle: Any) -> VJP:
        """The record of `keep`.

        Raises:
            RuntimeError: It is gone: the tensor has been copied or stored.
        """
        record = self._records.get(int(handle))
        if record is None:
            raise RuntimeError(
                "SparseMixer: what the forward pass kept is gone; saved tensors of this module cannot be moved or "
                "stored (save_on_cpu)"
            )
        return record

    # Gradients ----------------------------------------------------------------------------------------------------

    def reached(self, names: Sequence[str], given: Sequence[bool], aux: bool, outputs: Sequence[str]) -> list[str]:
        """Those of `names`, keys and inputs, that the outputs with a gradient depend on.

        Args:
            names: Keys and inputs.
            given: Whether there is a gradient, for each of `Results.outputs`.
            aux: Whether there is one of `Results.total`.
            outputs: As the call was given.
        """
        places = output_places(self.num_blocks, outputs)
        pooled = any(flag and name == "pooled_output" for (name, _), flag in zip(places, given, strict=True))
        blocks = [block for (_, block), flag in zip(places, given, strict=True) if flag]
        if aux:
            blocks += self.arguments.layers_within("moe_layers")
        last = max(blocks, default=-1)
        return [
            name
            for name in names
            if not (name.startswith("pooler_transform/") and not pooled)
            and not (name.startswith("transformer/layer_") and int(name.split("/")[1][len("layer_") :]) > last)
        ]

    def differentiate(
        self,
        record: VJP,
        d_outputs: Sequence[Array | None],
        d_total: float,
        names: Sequence[str],
        outputs: Sequence[str],
        last: bool,
    ) -> list[Any]:
        """Gradients of the parameters and inputs `names`, as float32 tensors.

        Args:
            record: Of the call.
            d_outputs: Gradients of `Results.outputs`; None for zero.
            d_total: Gradient of `Results.total`.
            names: Keys and inputs.
            outputs: As the call was given.
            last: Whether the record is not needed any more.
        """
        cotangents: dict[str, Any] = {"encoder_outputs": [None] * self.num_blocks}
        for (name, block), d_output in zip(output_places(self.num_blocks, outputs), d_outputs, strict=True):
            if d_output is not None and name == "encoder_outputs":
                cotangents[name][block] = d_output
            elif d_output is not None:
                cotangents[name] = d_output
        arrays = record.arrays(cotangents, aux_loss_weight=d_total, last=last)
        return [torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in names]


def variables_of(encoder: SparseMixer) -> list[Variable]:
    """The encoder's own weights, without those of an embedding layer that it was given."""
    return [variable for variable in encoder.weights if isinstance(variable, Variable)]


def core_outputs(outputs: Sequence[str]) -> list[str]:
    """What to ask the encoder for: the last of the blocks' outputs is the sequence output."""
    return [name for name in outputs if name != "sequence_output" or "encoder_outputs" not in outputs]


def output_places(num_blocks: int, outputs: Sequence[str]) -> list[tuple[str, int]]:
    """For each of `Results.outputs` its name among the gradients of a VJP, and the block that it comes from."""
    places: list[tuple[str, int]] = []
    if "encoder_outputs" in outputs:
        places += [("encoder_outputs", block) for block in range(num_blocks - 1)]
    if "encoder_outputs" in outputs or "sequence_output" in outputs:
        places.append(("sequence_output", num_blocks - 1))
    if "pooled_output" in outputs:
        places.append(("pooled_output", num_blocks - 1))
    return places


def _know(tensor: Any) -> _Known:
    values = tensor.detach().numpy()
    place = values.size // 2
    version = -1 if tensor.is_inference() else tensor._version
    return _Known(weakref.ref(tensor), version, tensor.data_ptr(), values, place, values.item(place))
