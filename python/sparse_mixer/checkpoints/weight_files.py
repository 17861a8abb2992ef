"""Weight files of every format behind one interface: list, match, read.

safetensors, Flax, TensorFlow and ``.npz`` files are read by the core, HDF5 files by `keras_h5`, mappings of arrays as
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Entry = tuple[str, str, Sequence[int]]
TargetWeights = Sequence[tuple[str, Sequence[int]]]


def type_name(dtype: np.dtype[Any]) -> str:
    """The name of an element type. Two bytes that numpy has no name for are bfloat16, which it does not know."""
    return "bfloat16" if _is_bfloat16(dtype) else dtype.name


def with_bfloat16_widened(array: Array) -> Array:
    """`array`, as float32 if it is bfloat16."""
    return _widened(array.view("<u2")) if _is_bfloat16(array.dtype) else array


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None and dtype.subdtype is None


def _widened(halves: npt.NDArray[np.uint16]) -> Floats:
    """The float32 numbers whose upper halves these are."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


class WeightFile(Protocol):
    """A file's tensors: listed at once, read one at a time."""

    path: str
    format: str
    metadata: Mapping[str, str]

    def entries(self) -> Sequence[Entry]:
        """Name, numpy type name and shape of every tensor."""

    def read(self, index: int) -> Array:
        """The tensor at `index`; bfloat16 is widened to float32."""

    def plan(
        self,
        targets: TargetWeights,
        prefix: str | None,
        *,
        first_position: int | None = None,
        zeros: Sequence[str] = (),
    ) -> _native.LoadPlan:
        """Match the `targets` weights, names and shapes in Keras order, with the file's tensors.

        Args:
            targets: The weights.
            prefix: Where in the file the encoder is, if there are several.
            first_position: The row of a larger table of positions from which on as many as wanted are taken; None
                if the table must fit.
            zeros: Weights that count as zeros where the file does not have them.
        """

    def provider(self, plan: _native.LoadPlan) -> Any:
        """What `_native.Encoder` takes to get its weights from this file."""

    def load_into(self, core: _native.Encoder, plan: _native.LoadPlan) -> None:
        """Replace the weights of `core` that `plan` has found, all or none."""

    def close(self) -> None:
        """Close the file."""


class NativeFile:
    """A file that the core reads."""

    def __init__(self, path: str) -> None:
        self._checkpoint = _native.Checkpoint(path)
        self.path = path
        self.format = self._checkpoint.format
        self.metadata: Mapping[str, str] = self._checkpoint.metadata
        self._entries = self._checkpoint.entries()

    def entries(self) -> Sequence[Entry]:
        """Name, numpy type name and shape of every tensor."""
        return self._entries

    def paths(self) -> list[str] | None:
        """Names by the paths of objects, in the order of `entries`, where those are numbers (a SavedModel)."""
        return self._checkpoint.paths()

    def read(self, index: int) -> Array:
        """The tensor at `index`; bfloat16 is widened to float32."""
        _, dtype, shape = self._entries[index]
        content = self._checkpoint.read(index)
        if dtype == "bfloat16":
            return _widened(np.frombuffer(content, "<u2")).reshape(shape)
        return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(shape)

    def plan(
        self,
        targets: TargetWeights,
        prefix: str | None,
        *,
        first_position: int | None = None,
        zeros: Sequence[str] = (),
    ) -> _native.LoadPlan:
        """See `WeightFile`."""
        return self._checkpoint.plan(targets, prefix, first_position=first_position, zeros=list(zeros))

    def provider(self, plan: _native.LoadPlan) -> Any:
        """The plan itself: the core reads without a detour through Python."""
        return plan

    def load_into(self, core: _native.Encoder, plan: _native.LoadPlan) -> None:
        """Replace the weights of `core` that `plan` has found, all or none."""
        core.load_planned(plan)

    def close(self) -> None:
        """Nothing to do: the file is closed together with this object and its plans."""


class PythonFile:
    """Base of the files that Python reads."""

    path: str

    def entries(self) -> Sequence[Entry]:
        """See `WeightFile`."""
        raise NotImplementedError

    def read(self, index: int) -> Array:
        """See `WeightFile`."""
        raise NotImplementedError

    def plan(
        self,
        targets: TargetWeights,
        prefix: str | None,
        *,
        first_position: int | None = None,
        zeros: Sequence[str] = (),
    ) -> _native.LoadPlan:
        """See `WeightFile`."""
        options: Any = {"first_position": first_position, "zeros": list(zeros)}
        return _native.plan_load(self.entries(), targets, prefix, path=self.path, **options)

    def provider(self, plan: _native.LoadPlan) -> Callable[[str, tuple[int, ...]], Floats]:
        """A function from name and shape of each weight, in Keras order, to its values."""
        reads = {index: (entry, swap, first) for index, entry, swap, first in plan.reads}
        zeros = frozenset(plan.zeros)
        order = iter(range(len(reads) + len(zeros) + len(plan.missing)))

        def provide(name: str, shape: tuple[int, ...]) -> Floats:
            index = next(order)
            if index in zeros:
                return np.zeros(shape, np.float32)
            return self.weight(*reads[index], shape)

        return provide

    def load_into(self, core: _native.Encoder, plan: _native.LoadPlan) -> None:
        """Replace the weights of `core` that `plan` has found, all or none."""
        specs = core.weight_specs()
        weights = [self.weight(entry, swap, first, specs[index][1]) for index, entry, swap, first in plan.reads]
        weights += [np.zeros(specs[index][1], np.float32) for index in plan.zeros]
        core.assign([*(index for index, *_ in plan.reads), *plan.zeros], weights)

    def close(self) -> None:
        """Nothing to do for arrays."""

    def weight(self, entry: int, swap: bool, first_row: int | None, shape: Sequence[int]) -> Floats:
        """The array at `entry` as a weight of ours of `shape`.

        Args:
            entry: Its number.
            swap: Whether its two leading axes are swapped.
            first_row: The first of the rows that are taken; None for the whole array.
            shape: The shape of the weight.
        """
        array = self.read(entry)
        if first_row is not None:
            array = array.reshape(-1, shape[-1])[first_row : first_row + shape[0]]
        if swap:
            array = np.swapaxes(array, 0, 1)
        return np.require(array.reshape(shape), np.float32, ["C", "A", "E"])


class ArrayMapping(PythonFile):
    """A mapping of names to arrays."""

    format = "mapping"
    path = "the mapping of weights"

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.metadata: Mapping[str, str] = {}
        self._names = [str(name) for name in arrays]
        self._arrays = [np.asarray(array) for array in arrays.values()]

    def entries(self) -> Sequence[Entry]:
        """Name, numpy type name and shape of every array."""
        return [(name, type_name(a.dtype), a.shape) for name, a in zip(self._names, self._arrays, strict=True)]

    def read(self, index: int) -> Array:
        """The array at `index`."""
        return with_bfloat16_widened(self._arrays[index])
