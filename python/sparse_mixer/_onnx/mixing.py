"""The first sublayer of a block: attention, or another way of mixing tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparse_mixer import _native
from sparse_mixer._onnx.graph import Graph


class AttentionMask:
    """What becomes of attention scores before the softmax.

    Args:
        graph: Where it is computed.
        mask: The mask, float32 [B, S]; None to tell padding by its id.
        ids: The word ids, if there is no mask.
        pad_id: The id of padding if real tokens attend to real tokens and padding evenly to everything; None if masks
            cover keys.
        biases: Added to the scores first, float32 [1, N, S, S], if there are any.
    """

    def __init__(
        self, graph: Graph, mask: str | None, ids: str | None, pad_id: int | None, biases: str | None = None
    ) -> None:
        self._biases = biases
        self._adder = self._visible = ""
        if pad_id is None:
            assert mask is not None, "the inputs have been checked"
            hidden = graph.op("Sub", graph.constant(1.0), mask)
            self._adder = graph.op("Unsqueeze", graph.op("Mul", hidden, graph.constant(-1e9)), graph.integers(1, 2))
            return
        if mask is not None:
            padding = graph.op("Equal", mask, graph.constant(0.0))
        else:
            assert ids is not None, "the inputs have been checked"
            padding = graph.op("Equal", ids, graph.constant(pad_id, np.int64))
        real = graph.op("Not", padding)
        queries = graph.op("Unsqueeze", real, graph.integers(1, 3))
        keys = graph.op("Unsqueeze", real, graph.integers(1, 2))
        self._visible = graph.op("And", queries, keys)

    def apply(self, graph: Graph, scores: str) -> str:
        """Bias and mask scores ``[B, N, S, S]``."""
        if self._biases is not None:
            scores = graph.op("Add", scores, self._biases)
        if self._adder:
            return graph.op("Add", scores, self._adder)
        return graph.op("Where", self._visible, scores, graph.constant(np.finfo(np.float32).min))


def relative_biases(graph: Graph, seq: int, length: str | None) -> str:
    """Relative position biases ``[1, N, S, S]`` by distance; of the first `length` positions, if that is given."""
    key = "relative_attention_bias/embeddings"
    query, position = np.indices((seq, seq))
    index = np.array(_native.distance_buckets(seq, graph.shape(key)[0]))[seq - 1 + position - query]
    rows = graph.op("Gather", graph.weight(key), graph.constant(index, np.int32), axis=0)
    biases = graph.op("Unsqueeze", graph.op("Transpose", rows, perm=[2, 0, 1]), graph.integers(0))
    if length is None:
        return biases
    ends = graph.op("Concat", length, length, axis=0)
    return graph.op("Slice", biases, graph.integers(0, 0), ends, graph.integers(2, 3))


def attend(graph: Graph, key: str, heads: int, query: str, stream: str, mask: AttentionMask) -> str:
    """Attention of `query` to `stream`, both ``[B, S, H]``."""
    hidden, _, size = graph.shape(f"{key}/query/kernel")

    def project(name: str, x: str, order: list[int]) -> str:
        flat = graph.dense(f"{key}/{name}", x, [hidden, hidden])
        if name == "query":
            flat = graph.op("Mul", flat, graph.constant(1 / math.sqrt(size)))
        return graph.op("Transpose", graph.op("Reshape", flat, graph.integers(0, 0, heads, size)), perm=order)

    scores = graph.op("MatMul", project("query", query, [0, 2, 1, 3]), project("key", stream, [0, 2, 3, 1]))
    weights = graph.op("Softmax", mask.apply(graph, scores), axis=-1)
    mixed = graph.op("MatMul", weights, project("value", stream, [0, 2, 1, 3]))
    rows = graph.op("Reshape", graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), graph.integers(0, 0, hidden))
    return graph.dense(f"{key}/attention_output", rows, [hidden, hidden])


def linear(graph: Graph, key: str, x: str) -> str:
    """Learned matrices along the hidden dimension and the sequence."""
    rows = graph.op("MatMul", x, graph.weight(f"{key}/hidden_kernel"))
    return graph.op("MatMul", graph.weight(f"{key}/seq_kernel"), rows)


def structured(graph: Graph, key: str, mechanism: str, seq: int, hidden: int, x: str) -> str:
    """The same with circulant or Toeplitz matrices, which are made from vectors when the model is loaded."""

    def matrix(name: str, size: int, transposed: bool) -> str:
        p, q = np.indices((size, size))
        index = (p - q) % size if mechanism == "circulant" else size - 1 + q - p
        index = index.T if transposed else index
        return graph.op("Gather", graph.weight(f"{key}/{name}"), graph.constant(index, np.int32), axis=0)

    rows = graph.op("MatMul", x, matrix("hidden_kernel", hidden, True))
    return graph.op("MatMul", matrix("seq_kernel", seq, False), rows)


class Transform:
    """Fourier or Hartley mixing as products with cosines and sines: of any length, and shared by all blocks.

    Args:
        graph: Where the matrices are.
        mechanism: ``"fourier"`` or ``"hartley"``.
        seq: The length of sequences; None if it varies, and then `length` is it, int64 [1].
        length: See there.
        hidden: Width of the stream.
    """

    def __init__(self, graph: Graph, mechanism: str, seq: int | None, length: str, hidden: int) -> None:
        cos_h, sin_h = waves(hidden)
        self._hidden = graph.constant(cos_h), graph.constant(sin_h)
        # cos(s + h) = cos s cos h - sin s sin h, and sin(s + h) = sin s cos h + cos s sin h.
        hartley = mechanism == "hartley"
        if seq is not None:
            cos_s, sin_s = waves(seq)
            pair = (cos_s + sin_s, cos_s - sin_s) if hartley else (cos_s, -sin_s)
            self._seq = graph.constant(pair[0]), graph.constant(pair[1])
        else:
            cosine, sine = _waves_of(graph, length)
            if hartley:
                self._seq = graph.op("Add", cosine, sine), graph.op("Sub", cosine, sine)
            else:
                self._seq = cosine, graph.op("Neg", sine)

    def apply(self, graph: Graph, x: str) -> str:
        """Mix ``[B, S, H]``."""
        parts = [
            graph.op("MatMul", along_seq, graph.op("MatMul", x, along_hidden))
            for along_seq, along_hidden in zip(self._seq, self._hidden, strict=True)
        ]
        return graph.op("Add", *parts)


def waves(size: int) -> tuple[Any, Any]:
    """Cosines and sines of ``2 pi p q / size``, float64 ``[size, size]``."""
    angle = 2 * math.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    return np.cos(angle), np.sin(angle)


def _waves_of(graph: Graph, length: str) -> tuple[str, str]:
    """The same of a length that is known when the model runs, as accurate as 32 bits allow.

    Angles are counted in quarters of the unit ``2 pi / length``, so that integers fold them into half a turn;
    ``cos(k) = sin(quarter turn - |k|)`` then takes the sine of small angles only.
    """
    numbers = graph.arange(length)
    column, row = graph.op("Unsqueeze", numbers, graph.integers(1)), graph.op("Unsqueeze", numbers, graph.integers(0))
    product = graph.op("Mod", graph.op("Mul", column, row), length)
    angle = graph.op("Mul", product, graph.integers(4))
    turn = graph.op("Mul", length, graph.integers(4))
    unit = graph.op("Div", graph.constant(math.pi / 2), graph.to_float(length))

    def cosine(k: str) -> str:
        # k lies above -length and below 4 * length: the nearest multiple of a turn is 0 or 1.
        distance = graph.op("Min", graph.op("Abs", k), graph.op("Sub", turn, k))
        return graph.op("Sin", graph.op("Mul", graph.to_float(graph.op("Sub", length, distance)), unit))

    return cosine(angle), cosine(graph.op("Sub", angle, length))
