"""The encoder's graph: embeddings, blocks, pooler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from sparse_mixer._core.arguments import Arguments
from sparse_mixer._onnx import activations, mixing, mixture
from sparse_mixer._onnx.graph import Graph


class EncoderGraph:
    """Builds the graph of one encoder.

    Args:
        graph: Takes the operators.
        arguments: The encoder's.
        inputs: Name and type of the model's inputs.
        outputs: Names of the wanted outputs of a call.
    """

    def __init__(
        self, graph: Graph, arguments: Arguments, inputs: dict[str, np.dtype[Any]], outputs: Sequence[str]
    ) -> None:
        self.graph = graph
        self.arguments = arguments
        self.inputs = inputs
        self.wanted = set(outputs)
        self.outputs: list[tuple[str, int, list[int | str]]] = []
        """Name, ONNX's type and shape of each output."""
        self.seq = None if takes_shorter(arguments) else int(arguments.max_sequence_length)
        strict = arguments.semantics == "keras_strict"
        self.checks_types = not strict
        self.output_range = None if strict else arguments.output_range
        self.attention = arguments.layers_within("attention_layers")
        self.moe = arguments.layers_within("moe_layers")

    def build(self) -> None:
        """Make everything."""
        graph, a = self.graph, self.arguments
        with graph.scope("embeddings"):
            rows = self._words()
            self.length = graph.dimension(rows, 1)
            x = self._embed(rows)
        with graph.scope("shared"):
            self.mask = self._mask() if self.attention else None
            transforms = a.mixing_mechanism.value in ("fourier", "hartley")
            mixes = len(self.attention) < a.num_layers
            self.transform = (
                mixing.Transform(graph, a.mixing_mechanism.value, self.seq, self.length, a.hidden_size)
                if transforms and mixes
                else None
            )
            self.grouping = mixture.make_grouping(graph, a, self.seq, self.length, rows) if self.moe else None
        for layer in range(a.num_layers):
            with graph.scope(f"layer_{layer}"):
                x = self._block(layer, x)
            if "encoder_outputs" in self.wanted:
                self._give(f"encoder_output_{layer}", x, self._shape(layer))
        if "sequence_output" in self.wanted:
            self._give("sequence_output", x, self._shape(a.num_layers - 1))
        if "pooled_output" in self.wanted:
            with graph.scope("pooler"):
                first = graph.op("Squeeze", graph.first_positions(x, 1), graph.integers(1))
                pooled = graph.op("Tanh", graph.dense("pooler_transform", first))
            self._give("pooled_output", pooled, ["batch", a.hidden_size])

    def input_shapes(self) -> dict[str, list[int | str]]:
        """Of all inputs."""
        length: int | str = "length" if self.seq is None else self.seq
        parts = ("word_length", "dense_length") if "dense_inputs" in self.inputs else (length, length)
        shapes: dict[str, list[int | str]] = {}
        for name in self.inputs:
            shapes[name] = ["batch", parts[name.startswith("dense")]]
            if name in ("input_word_embeddings", "dense_inputs"):
                shapes[name].append(self.arguments.width())
        return shapes

    def _give(self, name: str, value: str, shape: list[int | str], dtype: int = onnx.TensorProto.FLOAT) -> None:
        self.graph.rename(value, name)
        self.outputs.append((name, dtype, shape))

    def _rows(self, layer: int) -> int | None:
        """Positions of the layer's output that are wanted; None for all."""
        if layer < self.arguments.num_layers - 1:
            return None
        if not self.wanted & {"sequence_output", "encoder_outputs"}:
            return 1  # for the pooler
        return None if self.output_range is None else int(self.output_range)

    def _shape(self, layer: int) -> list[int | str]:
        rows = self._rows(layer)
        whole: int | str = "length" if self.seq is None else self.seq
        if rows is None or (self.seq is not None and rows >= self.seq):
            rows_shape = whole
        else:
            # Of a shorter sequence there may be fewer.
            rows_shape = "output_length" if self.seq is None else rows
        return ["batch", rows_shape, self.arguments.hidden_size]

    # Embeddings and mask -------------------------------------------------------------------------------------------

    def _float(self, name: str) -> str:
        """An input as float32."""
        return name if self.inputs[name] == np.float32 else self.graph.to_float(name)

    def _words(self) -> str:
        """Rows of the word table, given or dense: [B, S, W]."""
        graph = self.graph
        if "input_word_embeddings" in self.inputs:
            rows = self._float("input_word_embeddings")
        else:
            rows = self._look_up("word_embeddings/embeddings", "input_word_ids")
        if "dense_inputs" in self.inputs:
            rows = graph.op("Concat", rows, self._float("dense_inputs"), axis=1)
        return rows

    def _look_up(self, key: str, ids: str) -> str:
        return self.graph.widen(self.graph.op("Gather", self.graph.stored(key), ids, axis=0), key)

    def _embed(self, rows: str) -> str:
        graph, a = self.graph, self.arguments
        types = "input_type_ids"
        if "dense_inputs" in self.inputs:
            types = self._both("input_type_ids", "dense_type_ids", np.dtype(np.int64))
        key = "type_embeddings/embeddings"
        if self.checks_types:
            type_rows = self._look_up(key, types)
        else:
            # A type that there is not has a row of zeros.
            ids = graph.op("Cast", types, to=onnx.TensorProto.INT64)
            count, zero = graph.integers(a.type_vocab_size), graph.integers(0)
            known = graph.op("And", graph.op("GreaterOrEqual", ids, zero), graph.op("Less", ids, count))
            table = graph.op("Concat", graph.weight(key), graph.constant(np.zeros((1, a.width()))), axis=0)
            type_rows = graph.op("Gather", table, graph.op("Where", known, ids, count), axis=0)
        positions = graph.weight("position_embedding/embeddings")
        if self.seq is None:
            zero, axis = graph.integers(0), graph.integers(0)
            positions = graph.op("Slice", positions, zero, self.length, axis)
        x = graph.op("Add", graph.op("Add", rows, positions), type_rows)
        x = graph.layer_norm("embeddings/layer_norm", x, a.layer_norm_epsilon)
        return graph.dense("embedding_projection", x) if graph.has("embedding_projection/kernel") else x

    def _both(self, words: str, dense: str, dtype: np.dtype[Any]) -> str:
        """The inputs of words and of dense rows, one after the other."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        parts = [
            name if self.inputs[name] == dtype else self.graph.op("Cast", name, to=kind) for name in (words, dense)
        ]
        return self.graph.op("Concat", *parts, axis=1)

    def _mask(self) -> mixing.AttentionMask:
        graph, pad_id, a = self.graph, self.arguments.padding_id(), self.arguments
        biases = None
        if a.relative_attention_num_buckets is not None:
            dynamic = self.length if self.seq is None else None
            biases = mixing.relative_biases(graph, a.max_sequence_length, dynamic)
        if "input_mask" not in self.inputs:
            ids = graph.op("Cast", "input_word_ids", to=onnx.TensorProto.INT64)
            return mixing.AttentionMask(graph, None, ids, pad_id, biases)
        if "dense_inputs" in self.inputs:
            mask = self._both("input_mask", "dense_mask", np.dtype(np.float32))
        else:
            mask = self._float("input_mask")
        return mixing.AttentionMask(graph, mask, None, pad_id, biases)

    # Blocks --------------------------------------------------------------------------------------------------------

    def _block(self, layer: int, x: str) -> str:
        graph, a = self.graph, self.arguments
        prefix = f"transformer/layer_{layer}"

        def norm(name: str, value: str) -> str:
            return graph.layer_norm(f"{prefix}/{name}_layer_norm", value, a.layer_norm_epsilon)

        query = norm("self_attention", x) if a.norm_first else x
        x = graph.op("Add", x, self._mix(layer, prefix, query, x))
        rows = self._rows(layer)
        if rows is not None and layer not in self.moe:
            # Experts choose among all tokens; elsewhere the others are not needed from here on.
            x, rows = graph.first_positions(x, rows), None
        h = norm("output" if a.norm_first else "self_attention", x)
        y = self._feed_forward(layer, prefix, h)
        if a.norm_first:
            x = graph.op("Add", x, y)
        elif graph.has(f"{prefix}/output_layer_norm/gamma"):
            x = norm("output", graph.op("Add", y, h))
        else:
            x = y
        return x if rows is None else graph.first_positions(x, rows)

    def _mix(self, layer: int, prefix: str, query: str, stream: str) -> str:
        graph, a = self.graph, self.arguments
        if layer in self.attention:
            assert self.mask is not None, "made where there is attention"
            key = f"{prefix}/self_attention"
            return mixing.attend(graph, key, a.num_attention_heads, query, stream, self.mask)
        mechanism = a.mixing_mechanism.value
        if self.transform is not None:
            return self.transform.apply(graph, query)
        if mechanism == "linear":
            return mixing.linear(graph, f"{prefix}/linear_transform", query)
        key = f"{prefix}/{mechanism}_transform"
        return mixing.structured(graph, key, mechanism, a.max_sequence_length, a.hidden_size, query)

    def _feed_forward(self, layer: int, prefix: str, h: str) -> str:
        graph, a = self.graph, self.arguments
        if layer not in self.moe:
            inner = activations.apply(graph, a.inner_activation, graph.dense(f"{prefix}/intermediate", h))
            return graph.dense(f"{prefix}/output", inner)
        assert self.grouping is not None, "made where there are mixtures"
        y, routed = mixture.mix(graph, a, f"{prefix}/moe", self.grouping, h)
        if "routing" in self.wanted and routed is not None:
            experts = a.num_experts
            shape: list[int | str] = ["groups", experts, f"slots_{layer}"]
            indices = routed.indices(graph)
            self._give(f"routing_{layer}_indices", indices, shape, onnx.TensorProto.INT32)
            self._give(f"routing_{layer}_probabilities", routed.probabilities, ["groups", "tokens", experts])
        return y


def takes_shorter(arguments: Arguments) -> bool:
    """Whether sequences may be shorter than `max_sequence_length`."""
    wanted = arguments.semantics == "paper" if arguments.shorter_sequences is None else arguments.shorter_sequences
    everywhere = len(arguments.layers_within("attention_layers")) == arguments.num_layers
    return bool(wanted) and (everywhere or arguments.mixing_mechanism.value in ("fourier", "hartley"))
