"""Operators of arrays for what holds an array: indexing, iteration, arithmetic, comparison by size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt


class ArrayOperators:
    """Base that computes with what `numpy` returns. Results are arrays of numpy, never objects of the class.

    Equality stays that of identity, so that such objects can be in sets and keys of dicts.
    """

    __slots__ = ()

    # Where an array of numpy stands on the left, it leaves the operator to this class.
    __array_priority__ = 100.0

    def numpy(self) -> npt.NDArray[Any]:
        """The values."""
        raise NotImplementedError

    def __getitem__(self, place: Any) -> Any:
        return self.numpy()[place]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.numpy())

    def __add__(self, other: Any) -> Any:
        return self.numpy() + _operand(other)

    def __radd__(self, other: Any) -> Any:
        return _operand(other) + self.numpy()

    def __sub__(self, other: Any) -> Any:
        return self.numpy() - _operand(other)

    def __rsub__(self, other: Any) -> Any:
        return _operand(other) - self.numpy()

    def __mul__(self, other: Any) -> Any:
        return self.numpy() * _operand(other)

    def __rmul__(self, other: Any) -> Any:
        return _operand(other) * self.numpy()

    def __truediv__(self, other: Any) -> Any:
        return self.numpy() / _operand(other)

    def __rtruediv__(self, other: Any) -> Any:
        return _operand(other) / self.numpy()

    def __floordiv__(self, other: Any) -> Any:
        return self.numpy() // _operand(other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _operand(other) // self.numpy()

    def __mod__(self, other: Any) -> Any:
        return self.numpy() % _operand(other)

    def __rmod__(self, other: Any) -> Any:
        return _operand(other) % self.numpy()

    def __pow__(self, other: Any) -> Any:
        return self.numpy() ** _operand(other)

    def __rpow__(self, other: Any) -> Any:
        return _operand(other) ** self.numpy()

    def __matmul__(self, other: Any) -> Any:
        return self.numpy() @ _operand(other)

    def __rmatmul__(self, other: Any) -> Any:
        return _operand(other) @ self.numpy()

    def __neg__(self) -> Any:
        return -self.numpy()

    def __abs__(self) -> Any:
        return abs(self.numpy())

    def __lt__(self, other: Any) -> Any:
        return self.numpy() < _operand(other)

    def __le__(self, other: Any) -> Any:
        return self.numpy() <= _operand(other)

    def __gt__(self, other: Any) -> Any:
        return self.numpy() > _operand(other)

    def __ge__(self, other: Any) -> Any:
        return self.numpy() >= _operand(other)


def _operand(other: Any) -> Any:
    """What numpy computes with: scalars stay scalars, so that they do not widen the result."""
    return other.numpy() if isinstance(other, ArrayOperators) else other
