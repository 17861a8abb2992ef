"""The Keras face of the encoder: signature, configuration, descriptions."""

from __future__ import annotations

import inspect
import json
import warnings
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import ARGUMENTS, TYPES, VOCAB_SIZE, assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import MixingMechanism, SparseMixer

# Reference: tf-models-official 2.20, official/nlp/modeling/networks/sparse_mixer.py.
REFERENCE_DEFAULTS: dict[str, Any] = {
    "vocab_size": inspect.Parameter.empty,
    "hidden_size": 512,
    "num_layers": 14,
    "moe_layers": (5, 6, 7, 8),
    "attention_layers": (10, 11, 12, 13),
    "num_experts": 16,
    "train_capacity_factor": 1.0,
    "eval_capacity_factor": 1.0,
    "examples_per_group": None,  # reads as 1.0
    "mixing_mechanism": MixingMechanism.LINEAR,
    "use_fft": False,
    "num_attention_heads": 8,
    "max_sequence_length": 512,
    "type_vocab_size": 16,
    "inner_dim": 2048,
    "inner_activation": "gelu_tanh",
    "output_dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer": None,  # reads as TruncatedNormal(stddev=0.02)
    "output_range": None,
    "embedding_width": None,
    "embedding_layer": None,
    "norm_first": False,
    "with_dense_inputs": False,
    "export_metrics": True,
}
REFERENCE_CONFIG_KEYS = [
    "vocab_size",
    "hidden_size",
    "num_layers",
    "moe_layers",
    "num_experts",
    "train_capacity_factor",
    "eval_capacity_factor",
    "examples_per_group",
    "mixing_mechanism",
    "use_fft",
    "attention_layers",
    "num_attention_heads",
    "max_sequence_length",
    "type_vocab_size",
    "inner_dim",
    "inner_activation",
    "output_dropout",
    "attention_dropout",
    "initializer",
    "output_range",
    "embedding_width",
    "embedding_layer",
    "norm_first",
    "with_dense_inputs",
    "export_metrics",
]


def test_arguments_defaults_and_order_are_the_references() -> None:
    parameters = inspect.signature(SparseMixer).parameters
    positional = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional.items()) == list(REFERENCE_DEFAULTS.items())


def test_modules_mirror_the_references() -> None:
    assert sparse_mixer.networks.SparseMixer is SparseMixer
    assert sparse_mixer.layers.MixingMechanism is MixingMechanism
    assert {m.name: m.value for m in MixingMechanism} == {
        "FOURIER": "fourier",
        "HARTLEY": "hartley",
        "LINEAR": "linear",
        # The paper's, which TensorFlow does not have.
        "CIRCULANT": "circulant",
        "TOEPLITZ": "toeplitz",
    }


# Configuration


def test_config_has_the_references_keys_in_order() -> None:
    config = SparseMixer(VOCAB_SIZE, num_layers=1, hidden_size=8, inner_dim=8, max_sequence_length=4).get_config()
    assert list(config) == REFERENCE_CONFIG_KEYS
    assert config["embedding_width"] == 8
    assert config["examples_per_group"] == 1.0
    assert config["initializer"] == {
        "module": "keras.initializers",
        "class_name": "TruncatedNormal",
        "config": {"mean": 0.0, "stddev": 0.02, "seed": None},
        "registered_name": None,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"inner_activation": "relu", "initializer": "glorot_uniform"},
        {"inner_activation": {"name": "elu", "alpha": 0.5}, "moe_layers": range(1, 2), "attention_layers": {0, 2}},
        {"mixing_mechanism": "hartley", "use_fft": True, "norm_first": True, "embedding_width": 6},
        {"output_range": 2, "semantics": "keras_strict", "max_group_size": 8, "dtype": "bfloat16"},
        {"router_z_loss_weight": 0.1, "jitter_noise": 0.01, "with_dense_inputs": True, "export_metrics": False},
        {"moe_layers": np.array([1, 2]), "hidden_size": np.int64(16), "output_dropout": np.float32(0.25)},
    ],
)
def test_config_survives_json(changes: dict[str, Any]) -> None:
    config = small_encoder(**changes).get_config()
    through_json = json.loads(json.dumps(config))
    assert through_json == config
    assert SparseMixer.from_config(through_json).get_config() == config


def test_equal_configs_with_a_seed_give_equal_encoders() -> None:
    encoder = small_encoder()
    rebuilt = SparseMixer.from_config(encoder.get_config())
    assert_same_outputs(rebuilt(small_inputs()), encoder(small_inputs()))


def test_tensorflows_own_config_dicts_are_accepted() -> None:
    class TheirMember:
        value = "linear"

    # The byte code of TensorFlow's default lambda, as its get_config serialises it.
    lambda_code = (
        "4wEAAAAAAAAAAAAAAAQAAAADAAAA80QAAACXAHQAAAAAAAAAAAAAAGoBAAAAAAAAAAACAAAAAAAA\n"
        "c3BhcnNlX21peGVyLnB52gthcHByb3hpbWF0ZdoEZ2VsdQ==\n"
    )
    config = small_encoder().get_config() | {
        "mixing_mechanism": TheirMember(),
        "inner_activation": {"value": (lambda_code, None, None)},
        "moe_layers": (1,),
    }
    assert SparseMixer.from_config(config).get_config() == small_encoder().get_config()


def test_keras_policies_choose_the_dtype() -> None:
    class Policy:
        name = "mixed_bfloat16"

    for dtype in (
        "mixed_bfloat16",
        Policy(),
        "bfloat16",
        {"class_name": "DTypePolicy", "config": {"name": "bfloat16"}},
    ):
        assert small_encoder(dtype=dtype).dtype == "bfloat16"
    assert small_encoder(dtype=np.float32).dtype == small_encoder().dtype == "float32"


def test_layers_that_do_not_exist_are_ignored() -> None:
    with pytest.warns(UserWarning, match=r"moe_layers: entries \[-1, 9\] name no layer"):
        encoder = small_encoder(moe_layers=[1, 9, -1])
    assert [layer.is_moe for layer in encoder.transformer_layers] == [False, True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_encoder(moe_layers=(5, 6, 7, 8), attention_layers=())


# Describing


def test_summary_counts_the_base_model() -> None:
    encoder = SparseMixer(30522, initializer="zeros")
    lines: list[str] = []
    encoder.summary(print_fn=lines.append)
    (text,) = lines
    assert "Parameters: 181,042,752" in text
    assert "Inference: 41.91 GFLOP per sequence" in text
    assert "181,042,752 parameters" in repr(encoder)
    assert "<table>" in encoder._repr_html_()


def test_quantised_encoders_are_new_ones() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    before = encoder(inputs)
    for converted in (encoder.quantize(), encoder.astype("bfloat16"), encoder.astype("float16")):
        assert converted.dtype != "float32"
        assert converted.weight_bytes < encoder.weight_bytes
        assert converted(inputs)["pooled_output"].dtype == np.float32
        assert converted.get_config()["dtype"] == converted.dtype
    assert_same_outputs(encoder(inputs), before)


def test_threads_can_be_limited() -> None:
    encoder = small_encoder(num_threads=1)
    assert encoder.num_threads == 1
    encoder.num_threads = 3
    assert encoder.num_threads == 3
    encoder.num_threads = None
    assert encoder.num_threads == sparse_mixer.get_num_threads() >= 1


def test_positional_arguments() -> None:
    names = list(REFERENCE_DEFAULTS)[:15]
    values = {**REFERENCE_DEFAULTS, **{k: v for k, v in ARGUMENTS.items() if k != "seed"}}
    assert SparseMixer(*(values[name] for name in names), seed=7).get_config() == small_encoder().get_config()
    assert values["type_vocab_size"] == TYPES
