"""Writes a model whose weights never exist twice: they go to the file one after the other.

A model is a protocol buffer: messages whose fields may come in any order. The graph's first part, everything but the
weights, is made by ``onnx``; the weights are appended to it as further fields.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from sparse_mixer._core.atomic_file import replacing
from sparse_mixer._onnx.graph import Weight

Read = Callable[[Weight], npt.NDArray[Any]]

LARGEST = 2**31 - 2**24
"""Bytes of weights beyond which they go to a side file: no protocol buffer may have 2 GiB."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of fields in ModelProto, GraphProto and TensorProto."""
_ALIGNMENT = 4096
"""Of weights in a side file, so that runtimes can map them."""


def write(model: onnx.ModelProto, weights: Iterable[Weight], read: Read, path: str, beside: bool) -> None:
    """Write the model to `path`, which is replaced in one step.

    Args:
        model: All but the weights.
        weights: What is missing.
        read: Gives a weight's values.
        path: The file.
        beside: Whether the weights go to the side file ``<path>.data``, which is replaced first.
    """
    weights = list(weights)
    if beside:
        side_file = path + ".data"
        with replacing(side_file) as temporary, open(temporary, "wb") as file:
            for weight in weights:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                location = {"location": os.path.basename(side_file), "offset": file.tell(), "length": weight.size}
                model.graph.initializer.append(_elsewhere(weight, location))
                file.write(_bytes(weight, read).data)
        weights = []
    graph = model.graph.SerializeToString()
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    heads = [_head(weight) for weight in weights]
    sizes = [len(head) + weight.size for head, weight in zip(heads, weights, strict=True)]
    size = len(graph) + sum(len(_prefix(_INITIALIZER, size)) + size for size in sizes)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(rest.SerializeToString() + _prefix(_GRAPH, size) + graph)
        for head, weight, size in zip(heads, weights, sizes, strict=True):
            file.write(_prefix(_INITIALIZER, size) + head)
            file.write(_bytes(weight, read).data)


def _bytes(weight: Weight, read: Read) -> npt.NDArray[np.uint8]:
    """The weight's values, little-endian."""
    values = np.ascontiguousarray(read(weight), weight.dtype.newbyteorder("<"))
    return values.reshape(-1).view(np.uint8)


def _described(weight: Weight) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=weight.name, dims=weight.shape)
    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
    return tensor


def _head(weight: Weight) -> bytes:
    """The weight's message up to its values."""
    described: bytes = _described(weight).SerializeToString()
    return described + _prefix(_RAW_DATA, weight.size)


def _elsewhere(weight: Weight, location: dict[str, Any]) -> onnx.TensorProto:
    tensor = _described(weight)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in location.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _prefix(field: int, length: int) -> bytes:
    """What stands before a field of `length` bytes: its number with the kind "bytes that follow", and the length."""
    return bytes([field << 3 | 2]) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
