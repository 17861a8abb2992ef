"""Weights as named variables, in the manner of ``tf.Variable``: views on the core's storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.array_operators import ArrayOperators
from sparse_mixer._core.arrays import as_float32 as as_float32
from sparse_mixer._core.overflow import overflowing, warn_of_overflow


class Variable(ArrayOperators):
    """One weight of an encoder or a head.

    Reading copies from the core; `assign` replaces the weight there. The storage is owned by the core, which may keep
    it in another type (bfloat16, int8); a variable always shows float32 values. Indexing, iteration and arithmetic
    (``variable[0]``, ``variable - 1``, ``variable @ x``) read it and give arrays of numpy; ``==`` is identity.

    Attributes:
        index: Position in the core's own order, which freezing does not change.
        key: Name without the encoder's, for example ``"transformer/layer_0/intermediate/kernel"``.
        name: Keras's full name, ``"<encoder name>/<key>:0"``; keys of heads have the head's name already.
        shape: Sizes of the axes.
        trainable: Whether optimisers may change it.
    """

    __slots__ = ("_core", "index", "key", "name", "shape", "trainable")

    def __init__(
        self,
        core: _native.Encoder | _native.Head | DetachedWeights,
        index: int,
        key: str,
        shape: tuple[int, ...],
        owner: str,
    ) -> None:
        self._core = core
        self.index = index
        self.key = key
        self.name = f"{owner}/{key}:0" if owner else f"{key}:0"
        self.shape = shape
        self.trainable = True

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """The type that `numpy` returns: float32."""
        return np.dtype(np.float32)

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def numpy(self) -> npt.NDArray[np.float32]:
        """A copy of the current values, float32 of shape `shape`."""
        return self._core.get_weight(self.index)

    def value(self) -> npt.NDArray[np.float32]:
        """As `numpy`: there is no graph in which a value could be anything else."""
        return self.numpy()

    read_value = value

    def rows(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Copies of the rows `ids` ``[n]`` of an embedding table, float32 ``[n, width]``; the rest is not read.

        Raises:
            ValueError: An id outside the table, or a weight that is no table.
        """
        if isinstance(self._core, _native.Head):
            raise ValueError("rows: a head has no embedding table")
        return self._core.get_rows(self.index, ids)

    def assign(self, value: npt.ArrayLike) -> None:
        """Replace all values.

        Args:
            value: Array of the variable's shape; converted to float32.

        Raises:
            ValueError: Wrong shape; nothing has changed then.
            TypeError: Not numeric.
        """
        assign_all([self], [value])

    def assign_add(self, delta: npt.ArrayLike) -> None:
        """Add `delta`, which may have fewer axes where numpy repeats it; reading and writing are two steps.

        Raises:
            ValueError: It does not fit the shape.
            TypeError: Not numeric.
        """
        self.assign(self.numpy() + as_float32("delta", delta))

    def assign_sub(self, delta: npt.ArrayLike) -> None:
        """Subtract `delta`; see `assign_add`."""
        self.assign(self.numpy() - as_float32("delta", delta))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a Variable cannot be viewed without copying; its storage is the core's")
        values = self.numpy()
        return values if dtype is None else values.astype(dtype, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a variable without axes")
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        # By itself a copy is a variable with its own values, not one of another encoder.
        store = {self.index: self.numpy()}
        return _detached, (store, self.index, self.key, self.name, self.shape, self.trainable)

    def __repr__(self) -> str:
        return f"<Variable {self.name!r} shape={self.shape} dtype=float32>"


class DetachedWeights:
    """Where the values of copied variables are; has what variables need of an encoder of the core."""

    def __init__(self, values: dict[int, npt.NDArray[np.float32]]) -> None:
        self._values = values

    def get_weight(self, index: int) -> npt.NDArray[np.float32]:
        """A copy of the values at `index`."""
        return self._values[index].copy()

    def get_weights(self, indices: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Copies of the values at `indices`."""
        return [self.get_weight(index) for index in indices]

    def get_rows(self, index: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Copies of rows of the table at `index`."""
        rows: npt.NDArray[np.float32] = self._values[index][ids]
        return rows

    def assign(self, indices: Sequence[int], values: Sequence[npt.NDArray[np.float32]]) -> None:
        """Replace the values at `indices`."""
        self._values.update({index: value.copy() for index, value in zip(indices, values, strict=True)})


def _detached(
    values: dict[int, npt.NDArray[np.float32]], index: int, key: str, name: str, shape: tuple[int, ...], trainable: bool
) -> Variable:
    variable = Variable(DetachedWeights(values), index, key, shape, "")
    variable.name, variable.trainable = name, trainable
    return variable


def by_owner(variables: Sequence[Any]) -> dict[Any, list[Variable]]:
    """The core's encoders and heads that own `variables`, each with those of its own; foreign ones are left out."""
    owners: dict[Any, list[Variable]] = {}
    for variable in variables:
        if isinstance(variable, Variable):
            owners.setdefault(variable._core, []).append(variable)
    return owners


def read_all(variables: Sequence[Any]) -> list[npt.NDArray[np.float32]]:
    """Copies of all `variables`, float32; those of one encoder are of one moment."""
    copies = {
        (core, variable.index): array
        for core, owned in by_owner(variables).items()
        for variable, array in zip(owned, core.get_weights([variable.index for variable in owned]), strict=True)
    }
    return [
        copies[variable._core, variable.index]
        if isinstance(variable, Variable)
        else np.array(variable.numpy(), dtype=np.float32)
        for variable in variables
    ]


def assign_all(variables: Sequence[Any], values: Sequence[npt.ArrayLike]) -> None:
    """Give all `variables` their new `values`, or change nothing.

    Args:
        variables: `Variable` objects; an own embedding layer may add foreign ones with ``name``, ``shape``,
            ``numpy`` and ``assign``, such as TensorFlow's.
        values: One array per variable.

    Raises:
        ValueError: Different lengths, or an array of a wrong shape.
        TypeError: `values` is not a sequence, or one of them is not numeric.
    """
    single = isinstance(values, str | bytes | Mapping) or getattr(values, "shape", None) == ()
    if single or not hasattr(values, "__len__"):
        raise TypeError(f"weights: expected a list of arrays, got {type(values).__name__}")
    if len(values) != len(variables):
        raise ValueError(f"weights: expected {len(variables)} arrays, got {len(values)}")
    arrays = []
    for position, (variable, value) in enumerate(zip(variables, values, strict=True)):
        argument, shape = f"weights[{position}] ({variable.name})", tuple(variable.shape)
        array = as_float32(argument, value)
        if array.shape != shape:
            raise ValueError(f"{argument}: expected shape {shape}, got {array.shape}")
        arrays.append(np.require(array, np.float32, ["C", "A", "E"]))
    assigned_to: dict[_native.Encoder | _native.Head | DetachedWeights, dict[int, npt.NDArray[np.float32]]] = {}
    for variable, array in zip(variables, arrays, strict=True):
        if isinstance(variable, Variable):
            assigned_to.setdefault(variable._core, {})[variable.index] = array
        else:
            variable.assign(array)
    # Each owner changes as a whole. The largest comes last, so that what may have to go back is small.
    owners = sorted(assigned_to.items(), key=lambda owner: sum(array.nbytes for array in owner[1].values()))
    before = [(core, list(assigned), core.get_weights(list(assigned))) for core, assigned in owners[:-1]]
    try:
        for core, assigned in owners:
            core.assign(list(assigned), list(assigned.values()))
    except BaseException:
        for core, indices, arrays in before:
            core.assign(indices, arrays)
        raise
    for core, assigned in owners:
        if isinstance(core, _native.Encoder) and (found := overflowing(core, assigned)):
            warn_of_overflow(core, [i for i in found if np.isfinite(assigned[i]).all()], stacklevel=3)
