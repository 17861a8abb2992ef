"""Stored calls of the reference encoder: outputs, losses and metrics, on every instruction set.

Under `semantics="keras_strict"` every case gives the reference's numbers. By default two do not, on purpose:
`output_range` has its documented effect, and type ids outside the vocabulary are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sparse_mixer
from closeness import assert_metrics_close, assert_output_close
from golden_cases import GoldenCase, golden_case, golden_names, manifests

NAMES = golden_names()
DEVIATIONS = ("output_range_ignored", "type_ids_out_of_vocabulary")

pytestmark = pytest.mark.filterwarnings("ignore:the expert capacity rounds to 0")


def build(case: GoldenCase, **arguments: Any) -> sparse_mixer.SparseMixer:
    encoder = sparse_mixer.SparseMixer(**case.config, **arguments)
    encoder.set_weights(case.weights)
    return encoder


def assert_golden(case: GoldenCase, encoder: sparse_mixer.SparseMixer) -> None:
    outputs = encoder(case.inputs, training=case.training)
    assert list(outputs) == ["sequence_output", "pooled_output", "encoder_outputs"]
    assert len(outputs["encoder_outputs"]) == case.config["num_layers"]
    flat = outputs | {f"encoder_output_{i:02d}": x for i, x in enumerate(outputs["encoder_outputs"])}
    for name, expected in case.outputs.items():
        assert_output_close(name, flat[name], expected, case.noise[name])

    assert_metrics_close(np.array(encoder.losses), case.losses)
    assert [metric.name for metric in encoder.metrics] == case.metric_names * len(case.metrics)
    results = np.array([metric.result() for metric in encoder.metrics], np.float64)
    assert_metrics_close(results.reshape(case.metrics.shape), case.metrics)


def test_there_are_57_cases() -> None:
    assert len(NAMES) == 57


@pytest.mark.parametrize("name", NAMES)
def test_strict_semantics(name: str) -> None:
    case = golden_case(name)
    assert_golden(case, build(case, semantics="keras_strict"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DEVIATIONS])
def test_default_semantics(name: str) -> None:
    case = golden_case(name)
    assert_golden(case, build(case))


@pytest.mark.parametrize("isa", sparse_mixer.cpu_info()["available"])
@pytest.mark.parametrize("name", NAMES)
def test_instruction_set(name: str, isa: str) -> None:
    case = golden_case(name)
    encoder = build(case, semantics="keras_strict", isa=isa)
    assert encoder.isa == isa
    assert_golden(case, encoder)


def test_output_range_has_its_documented_effect_by_default() -> None:
    case = golden_case("output_range_ignored")
    wanted = case.config["output_range"]
    outputs = build(case)(case.inputs)
    last = f"encoder_output_{case.config['num_layers'] - 1:02d}"
    expected = case.outputs["sequence_output"][:, :wanted]
    assert_output_close("sequence_output", outputs["sequence_output"], expected, case.noise["sequence_output"])
    assert_output_close(last, outputs["encoder_outputs"][-1], expected, case.noise[last])
    for layer, output in enumerate(outputs["encoder_outputs"][:-1]):
        key = f"encoder_output_{layer:02d}"
        assert_output_close(key, output, case.outputs[key], case.noise[key])
    expected = case.outputs["pooled_output"]
    assert_output_close("pooled_output", outputs["pooled_output"], expected, case.noise["pooled_output"])


def test_foreign_type_ids_are_refused_by_default() -> None:
    case = golden_case("type_ids_out_of_vocabulary")
    with pytest.raises(ValueError, match="input_type_ids"):
        build(case)(case.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_weight_names_and_shapes(name: str) -> None:
    case = golden_case(name)
    encoder = sparse_mixer.SparseMixer(**case.config, name="sparse_mixer")
    expected = [f"sparse_mixer/{key}:0" for key in case.weight_names]
    assert [weight.name for weight in encoder.weights] == expected
    assert [weight.shape for weight in encoder.weights] == [weight.shape for weight in case.weights]


@pytest.mark.parametrize("name", list(manifests()))
def test_manifest(name: str) -> None:
    manifest = manifests()[name]
    encoder = sparse_mixer.SparseMixer(**manifest["config"], initializer="zeros")
    expected = [(weight["name"], tuple(weight["shape"])) for weight in manifest["weights"]]
    if name == "built_with_input_word_embeddings_only":
        # TensorFlow creates the word table when it is first used; ours is there from the start.
        expected.insert(0, ("word_embeddings/embeddings", encoder.weights[0].shape))
    else:
        assert encoder.count_params() == manifest["num_parameters"]
    assert [(weight.key, weight.shape) for weight in encoder.weights] == expected
