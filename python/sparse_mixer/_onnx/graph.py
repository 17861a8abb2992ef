"""A graph of ONNX operators in the making; its weights are named here and read when the file is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from sparse_mixer import _native

Array = npt.NDArray[Any]


class Weight(NamedTuple):
    """A weight that the file is to hold."""

    name: str
    """In the graph."""
    number: int
    """Among the encoder's weights."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """float32 or float16."""

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Graph:
    """Operators, constants and weights. Values are known by their names, which methods take and return.

    Args:
        core: Where the weights come from.
        opset: Version of the operators.
        half: Whether kernels and tables are stored in float16, as an encoder of that type has them. They are widened
            before they are used, or after rows have been looked up.
    """

    def __init__(self, core: _native.Encoder, opset: int, half: bool) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.weights: dict[str, Weight] = {}
        self._half = half
        self._specs = {key: (index, shape) for index, (key, shape) in enumerate(core.weight_specs())}
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._widened: dict[str, str] = {}
        self._prefix = ""
        self._count = 0

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of values that are made in the block start with `name`."""
        before, self._prefix = self._prefix, f"{self._prefix}{name}/"
        try:
            yield
        finally:
            self._prefix = before

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output."""
        return self.ops(kind, inputs, 1, **attributes)[0]

    def ops(self, kind: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Add an operator with several outputs."""
        self._count += 1
        name = f"{self._prefix}{kind}_{self._count}"
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names

    def rename(self, value: str, name: str) -> None:
        """Give a value the name of an output of the model."""
        self.nodes.append(onnx.helper.make_node("Identity", [value], [name], name=f"{name}/Identity"))

    def constant(self, values: Any, dtype: npt.DTypeLike = np.float32) -> str:
        """A constant; equal ones exist once."""
        array = np.ascontiguousarray(np.asarray(values, dtype))
        array = array.reshape(np.shape(values))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = name = f"constant_{len(self._known)}"
            self.constants.append(onnx.numpy_helper.from_array(array, name))
        return self._known[key]

    def integers(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(list(values), np.int64)

    def has(self, key: str) -> bool:
        """Whether the encoder has the weight."""
        return key in self._specs

    def shape(self, key: str) -> tuple[int, ...]:
        """The weight's shape."""
        return self._specs[key][1]

    def stored(self, key: str, shape: Sequence[int] | None = None) -> str:
        """The weight as it is stored, perhaps in float16; `shape`, of as many elements, replaces its own."""
        if key not in self.weights:
            index, own = self._specs[key]
            dtype = np.float16 if self._half and self._is_half(key) else np.float32
            self.weights[key] = Weight(key, index, tuple(shape or own), np.dtype(dtype))
        return key

    def weight(self, key: str, shape: Sequence[int] | None = None) -> str:
        """The weight as float32."""
        return self.widen(self.stored(key, shape), key)

    def widen(self, value: str, key: str) -> str:
        """`value`, which has the type that the weight `key` is stored in, as float32."""
        if self.weights[key].dtype == np.float32:
            return value
        if value != key:
            return self.op("Cast", value, to=onnx.TensorProto.FLOAT)
        if key not in self._widened:
            self._widened[key] = self.op("Cast", value, to=onnx.TensorProto.FLOAT)
        return self._widened[key]

    @staticmethod
    def _is_half(key: str) -> bool:
        """Whether an encoder in float16 has the weight in that type."""
        *path, name = key.split("/")
        if "router" in path or path[-1] in ("circulant_transform", "toeplitz_transform"):
            return False
        return name in ("kernel", "embeddings", "hidden_kernel", "seq_kernel")

    # What several layers are made of -----------------------------------------------------------------------------

    def dense(self, key: str, x: str, shape: Sequence[int] | None = None) -> str:
        """``x @ kernel + bias``; `shape` is that of the kernel as a matrix, or as a matrix per expert."""
        kernel = self.weight(f"{key}/kernel", shape)
        bias_shape = None if shape is None else shape[-1:]
        return self.op("Add", self.op("MatMul", x, kernel), self.weight(f"{key}/bias", bias_shape))

    def layer_norm(self, key: str, x: str, epsilon: float) -> str:
        """Normalise over the last axis.

        Some runtimes compute the variance as the mean of squares minus the square of the mean, which for rows of
        nearly equal numbers is noise. Of centred rows it is not.
        """
        mean = self.op("ReduceMean", x, self.integers(-1), keepdims=1)
        scale, bias = self.weight(f"{key}/gamma"), self.weight(f"{key}/beta")
        return self.op("LayerNormalization", self.op("Sub", x, mean), scale, bias, axis=-1, epsilon=epsilon)

    def dimension(self, value: str, axis: int) -> str:
        """The size of one axis, int64 [1]."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def scalar(self, vector: str) -> str:
        """A vector of one element as a scalar."""
        return self.op("Squeeze", vector, self.integers(0))

    def arange(self, size: str) -> str:
        """``0 .. size - 1``, int64; `size` is int64 [1]."""
        zero, one = self.constant(0, np.int64), self.constant(1, np.int64)
        return self.op("Range", zero, self.scalar(size), one)

    def first_positions(self, x: str, count: int) -> str:
        """The first `count` positions of every example of ``[B, S, H]``."""
        return self.op("Slice", x, self.integers(0), self.integers(count), self.integers(1))

    def to_float(self, value: str) -> str:
        """As float32."""
        return self.op("Cast", value, to=onnx.TensorProto.FLOAT)
