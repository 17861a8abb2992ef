"""From an encoder to an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from sparse_mixer import _native
from sparse_mixer._core.checks import as_bool, as_int, as_strings
from sparse_mixer._core.encoder import NO_POOLER, Encoder
from sparse_mixer._core.inputs import KEYS
from sparse_mixer._core.overflow import warn_of_overflow
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer._onnx import activations, model_file
from sparse_mixer._onnx.encoder import EncoderGraph
from sparse_mixer._onnx.graph import Graph, Weight

OPSETS = (18, 23)
"""First and last version of the operators that a model may be written in."""
OUTPUTS = ("sequence_output", "pooled_output", "encoder_outputs", "routing")
_TYPES = {
    "input_word_ids": ("int32", "int64"),
    "input_type_ids": ("int32", "int64"),
    "dense_type_ids": ("int32", "int64"),
    "input_mask": ("int32", "int64", "float32"),
    "dense_mask": ("int32", "int64", "float32"),
    "input_word_embeddings": ("float32", "float16"),
    "dense_inputs": ("float32", "float16"),
}
"""Types that inputs may have, the usual one first."""


def export(
    encoder: Encoder,
    path: PathLike,
    *,
    outputs: Sequence[str],
    inputs: Sequence[str] | Mapping[str, Any] | None,
    opset: int,
    dtype: Any,
    external_data: bool | None,
) -> None:
    """See `SparseMixer.to_onnx`."""
    target = file_name(path)
    version = as_int("opset", opset)
    if not OPSETS[0] <= version <= OPSETS[1]:
        raise ValueError(f"opset: got {version}, expected {OPSETS[0]} to {OPSETS[1]}")
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype: got {dtype!r}, expected 'float32' or 'float16'")
    beside = None if external_data is None else as_bool("external_data", external_data)
    activations.check(encoder.arguments.inner_activation)
    wanted, given = _outputs(encoder, outputs), _inputs(encoder, inputs)
    # Weights of one moment, whatever becomes of the encoder's meanwhile; they are shared as long as they are equal.
    core = encoder.core.astype(encoder.dtype)
    graph = Graph(core, version, dtype == "float16")
    parts = EncoderGraph(graph, encoder.arguments, given, wanted)
    parts.build()
    weights = list(graph.weights.values())
    if beside is None:
        beside = sum(weight.size for weight in weights) > model_file.LARGEST
    infinite = set()

    def read(weight: Weight) -> Any:
        values = core.get_weight(weight.number).reshape(weight.shape)
        if weight.dtype == np.float32:
            return values
        with np.errstate(over="ignore"):
            rounded = values.astype(weight.dtype)
        if np.isinf(rounded).any() and np.isfinite(values).all():
            infinite.add(weight.number)
        return rounded

    model_file.write(_model(encoder, parts), weights, read, target, beside)
    if infinite:
        warn_of_overflow(core, infinite, stacklevel=3)


def _model(encoder: Encoder, parts: EncoderGraph) -> onnx.ModelProto:
    """Everything but the weights."""
    graph, helper = parts.graph, onnx.helper
    shapes = parts.input_shapes()
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), shapes[name])
        for name, kind in parts.inputs.items()
    ]
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in parts.outputs]
    made = helper.make_graph(graph.nodes, "sparse_mixer", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(
        made,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="sparse_mixer",
        producer_version=_native.__version__,
    )
    try:
        config = json.dumps(encoder.arguments.exact_config(), sort_keys=True)
    except TypeError:
        return model  # An initialiser or an embedding layer is a Python callable.
    helper.set_model_props(model, {"sparse_mixer.config": config})
    return model


def _outputs(encoder: Encoder, outputs: Sequence[str]) -> list[str]:
    wanted = as_strings("outputs", outputs, "names")
    unknown = [name for name in wanted if name not in OUTPUTS]
    if unknown or not wanted:
        raise ValueError(f"outputs: got {list(wanted)}, expected some of {list(OUTPUTS)}")
    if "pooled_output" in wanted and not encoder.arguments.with_pooler:
        raise ValueError(f"outputs: got 'pooled_output', but {NO_POOLER}")
    if "routing" in wanted and not encoder.arguments.layers_within("moe_layers"):
        raise ValueError("outputs: got 'routing', but no layer has experts")
    return list(wanted)


def _inputs(encoder: Encoder, inputs: Sequence[str] | Mapping[str, Any] | None) -> dict[str, np.dtype[Any]]:
    """Name and type of every input of the model."""
    a = encoder.arguments
    words = "input_word_ids" if a.embedding_layer is None else "input_word_embeddings"
    dense = ("dense_inputs", "dense_mask", "dense_type_ids")
    if inputs is None:
        inputs = [words, "input_mask", "input_type_ids", *(dense if a.with_dense_inputs else ())]
    if not isinstance(inputs, Mapping):
        inputs = dict.fromkeys(as_strings("inputs", inputs, "names"))
    given = {}
    for name, kind in inputs.items():
        if name not in KEYS:
            raise ValueError(f"inputs: got {name!r}, expected some of {list(KEYS)}")
        kinds = _TYPES[name]
        chosen = kinds[0] if kind is None else np.dtype(kind).name
        if chosen not in kinds:
            raise ValueError(f"inputs: got type {chosen!r} of {name}, expected one of {list(kinds)}")
        given[name] = np.dtype(chosen)
    both = [name for name in ("input_word_ids", "input_word_embeddings") if name in given]
    if len(both) != 1:
        raise ValueError(f"inputs: got {list(given)}, expected either input_word_ids or input_word_embeddings")
    if both[0] == "input_word_ids" and a.embedding_layer is not None:
        raise ValueError(
            "inputs: got 'input_word_ids', but embedding_layer is a Python callable; take 'input_word_embeddings'"
        )
    needed = {"input_type_ids"}
    attends = bool(a.layers_within("attention_layers"))
    ids_tell = a.padding_id() is not None and "input_word_ids" in given and "dense_inputs" not in given
    if attends and not ids_tell:
        needed.add("input_mask")
    if any(name in given for name in dense):
        needed |= {"dense_inputs", "dense_type_ids"} | ({"dense_mask"} if attends else set())
    if missing := sorted(needed - set(given)):
        raise ValueError(f"inputs: got {list(given)}, which lacks {', '.join(missing)}")
    return given
