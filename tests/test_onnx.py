"""Exported models in ONNX Runtime and OpenVINO beside the encoder, the reference and the paper's code."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from closeness import assert_output_close
from golden_cases import GoldenCase, golden_case, golden_names
from jax_cases import Array, assert_close, jax_case, jax_names

# Without these the tests are skipped, except when SPARSE_MIXER_REQUIRE_ONNX=1 (as in `make test`).
find = importlib.import_module if os.environ.get("SPARSE_MIXER_REQUIRE_ONNX") == "1" else pytest.importorskip
onnx = find("onnx")
ort = find("onnxruntime")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ov = find("openvino")

GOLDEN = [name for name in golden_names() if not golden_case(name).training]
PAPER = [name for name in jax_names("encoder", "pretraining", "classification") if not jax_case(name).training]
ALL = ("sequence_output", "pooled_output", "encoder_outputs")

pytestmark = pytest.mark.filterwarnings("ignore:the expert capacity rounds to 0")


Model = Callable[[dict[str, Array]], dict[str, Array]]


def in_onnx_runtime(path: Path) -> Model:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


@functools.cache
def openvino_core() -> Any:
    return ov.Core()


def in_openvino(path: Path) -> Model:
    model = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def call(inputs: dict[str, Array]) -> dict[str, Array]:
        results = model(inputs)
        return {name: np.array(results[output]) for output in model.outputs for name in output.names}

    return call


RUNTIMES = (in_onnx_runtime, in_openvino)


def types_of(inputs: dict[str, Array]) -> dict[str, Any]:
    """What to export for these inputs, whose types they keep where models can have them."""
    return {
        name: array.dtype if array.dtype.name in ("int32", "int64", "float32", "float16") else "float32"
        for name, array in inputs.items()
    }


def prepared(inputs: dict[str, Array], types: dict[str, Any]) -> dict[str, Array]:
    return {name: np.ascontiguousarray(inputs[name], types[name]) for name in types}


def run_golden(case: GoldenCase, tmp_path: Path) -> list[dict[str, Array]]:
    encoder = sparse_mixer.SparseMixer(**case.config, semantics="keras_strict")
    encoder.set_weights(case.weights)
    if "input_word_embeddings" in case.inputs:
        given = {name: value for name, value in case.inputs.items() if name != "input_word_ids"}
    else:
        given = dict(case.inputs)
    types = types_of(given)
    path = tmp_path / "model.onnx"
    encoder.to_onnx(path, outputs=ALL, inputs=types)
    onnx.checker.check_model(path, full_check=True)
    return [load(path)(prepared(given, types)) for load in RUNTIMES]


@pytest.mark.parametrize("name", GOLDEN)
def test_tensorflow(name: str, tmp_path: Path) -> None:
    case = golden_case(name)
    for results in run_golden(case, tmp_path):
        for key, expected in case.outputs.items():
            ours = f"encoder_output_{int(key[-2:])}" if key.startswith("encoder") else key
            assert_output_close(key, results[ours], expected, case.noise[key])


@pytest.mark.parametrize("name", PAPER)
def test_paper(name: str, tmp_path: Path) -> None:
    """The mask is left out: padding is told by its id."""
    case = jax_case(name)
    encoder = case.encoder(group_mixup=True)
    path = tmp_path / "model.onnx"
    encoder.to_onnx(path, inputs=("input_word_ids", "input_type_ids"))
    onnx.checker.check_model(path, full_check=True)
    inputs = prepared(case.inputs, dict.fromkeys(case.inputs, np.int32))
    for load in RUNTIMES:
        results = load(path)(inputs)
        for key in ("sequence_output", "pooled_output"):
            assert_close(key, results[key], case.data[f"outputs/{key}"])


# Beside the encoder itself ----------------------------------------------------------------------------------------

TOY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_layers": 3,
    "moe_layers": (1,),
    "attention_layers": (2,),
    "num_experts": 4,
    "num_attention_heads": 2,
    "inner_dim": 24,
    "max_sequence_length": 12,
    "type_vocab_size": 2,
    "seed": 0,
    # So that routers and activations have something to decide.
    "initializer": sparse_mixer.initializers.RandomNormal(stddev=0.3),
}


def toy(**changes: Any) -> sparse_mixer.SparseMixer:
    return sparse_mixer.SparseMixer(**{**TOY, **changes})


def batch(size: int, length: int = 12, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    ids = random.integers(1, 40, (size, length), dtype=np.int32)
    mask = np.ones_like(ids)
    mask[:, length - length // 4 :] = 0
    return {
        "input_word_ids": ids * mask,
        "input_mask": mask,
        "input_type_ids": random.integers(0, 2, (size, length), dtype=np.int32),
    }


def assert_same(
    encoder: sparse_mixer.SparseMixer,
    path: Path,
    batches: list[dict[str, Array]],
    outputs: tuple[str, ...] = ("sequence_output", "pooled_output"),
) -> None:
    """One model serves all batches, in both runtimes; the routing is the same exactly."""
    for load in RUNTIMES:
        model = load(path)
        for inputs in batches:
            results, expected = model(inputs), encoder(inputs, outputs=outputs)
            for key in {"sequence_output", "pooled_output"} & set(outputs):
                # Transforms give large numbers, of which the last digit is noise.
                noise = float(np.finfo(np.float32).eps * np.abs(expected[key]).max())
                assert_output_close(key, results[key], expected[key], noise)
            if "routing" in outputs:
                for layer, routing in zip(
                    encoder.arguments.layers_within("moe_layers"), expected["routing"], strict=True
                ):
                    np.testing.assert_array_equal(results[f"routing_{layer}_indices"], routing["indices"])
                    assert_output_close("routing", results[f"routing_{layer}_probabilities"], routing["probabilities"])


CHOOSING = {"router": "tokens_choose", "eval_capacity_factor": 0.8}
SHORTER = {"mixing_mechanism": "fourier", "shorter_sequences": True}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"norm_first": True, "mixing_mechanism": "hartley"},
        {"semantics": "paper", "mixing_mechanism": "circulant", "moe_layers": (0, 1)},
        {"semantics": "paper", "mixing_mechanism": "toeplitz", "max_group_size": 20},
        {"semantics": "paper", "router_dtype": "bfloat16", "max_group_size": 30},
        CHOOSING,
        {**CHOOSING, "num_selected_experts": 2, "max_group_size": 30, "moe_residual": True},
        {**CHOOSING, "num_selected_experts": 3, "batch_prioritized_routing": False, "norm_first": True},
        {**CHOOSING, "eval_capacity_factor": 9.0, "router_dtype": "bfloat16"},
        {"eval_capacity_factor": 4.0, "expert_inner_dim": 7},
        {"output_range": 3},
        {"output_range": 3, "moe_layers": (2,)},
        {"relative_attention_num_buckets": 32},
        {"embedding_width": 8, "examples_per_group": 0.5, "layer_norm_epsilon": 1e-5},
    ],
    ids=str,
)
def test_any_batch(arguments: dict[str, Any], tmp_path: Path) -> None:
    encoder = toy(**arguments)
    path, outputs = tmp_path / "model.onnx", ("sequence_output", "pooled_output", "routing")
    encoder.to_onnx(path, outputs=outputs)
    onnx.checker.check_model(path, full_check=True)
    assert_same(encoder, path, [batch(size, seed=size) for size in (1, 3)], outputs)


@pytest.mark.parametrize(
    "arguments",
    [
        SHORTER,
        {**SHORTER, "semantics": "paper", "mixing_mechanism": "hartley"},
        {**SHORTER, **CHOOSING},
        {**SHORTER, "output_range": 4},
        {"shorter_sequences": True, "attention_layers": (0, 1, 2), "moe_layers": ()},
        {
            "shorter_sequences": True,
            "attention_layers": (0, 1, 2),
            "moe_layers": (),
            "relative_attention_num_buckets": 8,
        },
    ],
    ids=str,
)
def test_any_length(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Down to lengths at which experts have room for nothing."""
    encoder = toy(**arguments, max_sequence_length=40)
    path = tmp_path / "model.onnx"
    encoder.to_onnx(path)
    onnx.checker.check_model(path, full_check=True)
    shortest = 4 if encoder.arguments.semantics == "paper" else 1
    assert_same(encoder, path, [batch(2, length) for length in (shortest, 37)])


def test_long_transforms_are_accurate(tmp_path: Path) -> None:
    """The matrices that are made for a length when the model runs are as good as those made in double precision."""
    small = {"hidden_size": 4, "num_layers": 1, "attention_layers": (), "moe_layers": ()}
    encoder = toy(**SHORTER, **small, max_sequence_length=700)
    path = tmp_path / "model.onnx"
    encoder.to_onnx(path)
    assert_same(encoder, path, [batch(1, 699)])


@pytest.mark.parametrize("arguments", [{}, {"semantics": "paper", "group_mixup": True, "max_group_size": 16}], ids=str)
def test_no_place_is_added_to_twice_at_once(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Tokens have several experts; ONNX Runtime's threads lose summands where one ScatterND repeats a place."""
    path, inputs = tmp_path / "model.onnx", batch(4)
    toy(eval_capacity_factor=3.0, **arguments).to_onnx(path)
    model = onnx.load(path)
    places = [node.input[1] for node in model.graph.node if node.op_type == "ScatterND"]
    assert places
    for name in places:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [array.ravel() for array in session.run(places, inputs)]
    assert all(len(np.unique(array)) == len(array) for array in found)
    assert len(np.unique(np.concatenate(found))) < sum(map(len, found)) / 2


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
def test_opsets(opset: int, activation: str, tmp_path: Path) -> None:
    encoder, path = toy(inner_activation=activation), tmp_path / "model.onnx"
    encoder.to_onnx(path, opset=opset)
    onnx.checker.check_model(path, full_check=True)
    assert [entry.version for entry in onnx.load(path).opset_import] == [opset]
    assert_same(encoder, path, [batch(2)])


RELU_LAYER = {"class_name": "ReLU", "config": {"max_value": 0.5, "negative_slope": 0.1, "threshold": 0.2}}


@pytest.mark.parametrize("activation", [*sparse_mixer.activations.names(), RELU_LAYER], ids=str)
def test_activations(activation: Any, tmp_path: Path) -> None:
    encoder, path = toy(inner_activation=activation), tmp_path / "model.onnx"
    encoder.to_onnx(path)
    inputs = batch(2)
    expected = encoder(inputs)["sequence_output"]
    assert_output_close("sequence_output", in_onnx_runtime(path)(inputs)["sequence_output"], expected)


def test_float16_is_the_encoders_own(tmp_path: Path) -> None:
    encoder = toy()
    whole, half = tmp_path / "whole.onnx", tmp_path / "half.onnx"
    encoder.to_onnx(whole)
    encoder.to_onnx(half, dtype="float16")
    onnx.checker.check_model(half, full_check=True)
    assert_same(encoder.astype("float16"), half, [batch(2)])
    difference = in_onnx_runtime(whole)(batch(2))["pooled_output"] - in_onnx_runtime(half)(batch(2))["pooled_output"]
    assert 1e-5 < np.abs(difference).max() < 1e-1
    sizes = {path: sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer) for path in (whole, half)}
    assert 0.5 < sizes[half] / sizes[whole] < 0.6


def test_numbers_that_float16_makes_infinite_are_named(tmp_path: Path) -> None:
    encoder = toy()
    encoder.get_embedding_table().assign(np.full((40, 16), 1e5, np.float32))
    with pytest.warns(UserWarning, match="word_embeddings/embeddings"):
        encoder.to_onnx(tmp_path / "model.onnx", dtype="float16")


def test_weights_beside_the_model(tmp_path: Path) -> None:
    encoder, path = toy(), tmp_path / "model.onnx"
    encoder.to_onnx(path, external_data=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    onnx.checker.check_model(path, full_check=True)
    assert_same(encoder, path, [batch(2)])


def test_weights_of_2_gb_go_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_mixer._onnx import model_file

    monkeypatch.setattr(model_file, "LARGEST", 10_000)
    encoder, path = toy(), tmp_path / "model.onnx"
    encoder.to_onnx(path)
    assert (tmp_path / "model.onnx.data").stat().st_size > 10_000
    assert_same(encoder, path, [batch(2)])


def test_input_types(tmp_path: Path) -> None:
    encoder, path = toy(), tmp_path / "model.onnx"
    types = {"input_word_ids": "int64", "input_mask": "float32", "input_type_ids": np.int64}
    encoder.to_onnx(path, inputs=types, outputs=["pooled_output"])
    inputs = prepared(batch(2), types)
    assert_same(encoder, path, [inputs], ("pooled_output",))
    assert list(in_onnx_runtime(path)(inputs)) == ["pooled_output"]


def test_an_own_embedding_layer_is_left_to_the_caller(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((40, 16), dtype=np.float32)
    encoder, path = toy(embedding_layer=lambda ids: table[ids]), tmp_path / "model.onnx"
    encoder.to_onnx(path)
    inputs = batch(2)
    expected = encoder(inputs)["sequence_output"]
    inputs["input_word_embeddings"] = table[inputs.pop("input_word_ids")]
    assert_output_close("sequence_output", in_onnx_runtime(path)(inputs)["sequence_output"], expected)
    with pytest.raises(ValueError, match="embedding_layer is a Python callable"):
        encoder.to_onnx(path, inputs=["input_word_ids", "input_mask", "input_type_ids"])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"inner_activation": lambda x: x}, {}, "inner_activation: got the Python function '<lambda>'"),
        ({}, {"opset": 17}, "opset: got 17, expected 18 to 23"),
        ({}, {"opset": 99}, "opset: got 99, expected 18 to 23"),
        ({}, {"dtype": "int8"}, "dtype: got 'int8', expected 'float32' or 'float16'"),
        ({}, {"outputs": ["pooled"]}, r"outputs: got \['pooled'\]"),
        ({}, {"outputs": []}, r"outputs: got \[\]"),
        ({"moe_layers": ()}, {"outputs": ["routing"]}, "outputs: got 'routing', but no layer has experts"),
        ({"with_pooler": False}, {}, "outputs: got 'pooled_output', but this encoder has no pooler"),
        ({}, {"inputs": ["input_word_ids", "input_type_ids"]}, "lacks input_mask"),
        ({}, {"inputs": ["input_mask", "input_type_ids"]}, "either input_word_ids or input_word_embeddings"),
        ({}, {"inputs": ["ids"]}, "inputs: got 'ids'"),
        ({}, {"inputs": {"input_word_ids": "float32"}}, "got type 'float32' of input_word_ids"),
        ({"eval_capacity_factor": 5.0}, {}, "eval_capacity_factor: got 5.0: an expert would take 15 of the 12 tokens"),
    ],
)
def test_refusals(arguments: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        toy(**arguments).to_onnx(path, **options)
    assert path.read_text() == "before"


MEMORY = """
import sys, numpy, onnx, sparse_mixer
def peak():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["VmHWM"].split()[0]) * 1024
encoder = sparse_mixer.SparseMixer(20_000, hidden_size=512, num_layers=2, moe_layers=(1,), attention_layers=(), seed=0)
before = peak()
encoder.to_onnx(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_writing_takes_the_memory_of_one_weight(tmp_path: Path) -> None:
    """An encoder of 190 MB; its experts' kernels are the largest weights, 67 MB each."""
    path = tmp_path / "model.onnx"
    done = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
    assert path.stat().st_size > 1.8e8
    assert int(done.stdout) < 1e8
