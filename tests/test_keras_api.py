"""The Keras face of the encoder: signature, configuration, weights, losses and metrics."""

from __future__ import annotations

import inspect
import json
import pathlib
import warnings
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import ARGUMENTS, LENGTH, TYPES, VOCAB_SIZE, WIDTH, assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import MixingMechanism, SparseMixer

MANIFESTS = pathlib.Path(__file__).parent / "golden" / "manifests"

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


# Weights


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.json")), ids=lambda path: path.stem)
def test_weight_names_shapes_and_order(path: pathlib.Path) -> None:
    manifest = json.loads(path.read_text())
    config = dict(manifest["config"])
    config.pop("inner_activation", None)
    encoder = SparseMixer(**config, initializer="zeros")
    expected = [(weight["name"], tuple(weight["shape"])) for weight in manifest["weights"]]
    if "word_embeddings" in path.stem:  # TensorFlow has no word table before ids are used once.
        expected.insert(0, ("word_embeddings/embeddings", (config["vocab_size"], config["hidden_size"])))
    else:
        assert encoder.count_params() == manifest["num_parameters"]
    assert [(weight.key, weight.shape) for weight in encoder.weights] == expected
    assert [weight.name for weight in encoder.weights] == [f"{encoder.name}/{key}:0" for key, _ in expected]


def test_default_names_count_up() -> None:
    first, second = small_encoder().name, small_encoder().name
    assert first.startswith("sparse_mixer")
    assert second.startswith("sparse_mixer_")
    assert first != second
    assert small_encoder(name="mine").weights[0].name == "mine/word_embeddings/embeddings:0"


def test_weights_carry_over() -> None:
    source, target = small_encoder(seed=1), small_encoder(seed=2)
    target.set_weights([weight.astype(np.float64) for weight in source.get_weights()])
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    assert_same_outputs(source(small_inputs()), target(small_inputs()))


def test_get_weights_returns_copies() -> None:
    encoder = small_encoder()
    before = encoder(small_inputs())
    for weight in encoder.get_weights():
        weight[...] = 9
    np.asarray(encoder.weights[0])[...] = 9
    assert_same_outputs(encoder(small_inputs()), before)


def test_one_variable_can_be_assigned() -> None:
    encoder = small_encoder()
    table = encoder.get_embedding_table()
    table.assign(np.ones(table.shape))
    assert (encoder.get_weights()[0] == 1).all()
    assert (table.numpy() == 1).all()
    assert encoder.get_embedding_layer()([[3, 4]]).shape == (1, 2, WIDTH)


def test_frozen_layers_move_to_the_end() -> None:
    encoder = small_encoder()
    names = [weight.name for weight in encoder.weights]
    encoder.transformer_layers[1].trainable = False
    frozen = [weight.name for weight in encoder.transformer_layers[1].weights]
    assert [w.name for w in encoder.weights] == [n for n in names if n not in frozen] + frozen
    assert [w.name for w in encoder.non_trainable_weights] == frozen
    encoder.set_weights(encoder.get_weights())
    encoder.trainable = False
    assert encoder.trainable_weights == []
    assert [w.name for w in encoder.weights] == names


def test_layers_read_and_write_their_own_weights() -> None:
    encoder = small_encoder()
    pooler = encoder.pooler_layer
    assert pooler.name == "pooler_transform"
    pooler.set_weights([np.zeros((WIDTH, WIDTH)), np.full(WIDTH, 0.5)])
    np.testing.assert_allclose(encoder(small_inputs())["pooled_output"], np.tanh(0.5), rtol=1e-6)
    kinds = [(layer.name, layer.mixing, layer.is_moe) for layer in encoder.transformer_layers]
    assert kinds == [
        ("transformer/layer_0", "linear", False),
        ("transformer/layer_1", "linear", True),
        ("transformer/layer_2", "attention", False),
    ]
    assert sum(layer.count_params() for layer in encoder.layers) == encoder.count_params()


def test_own_embedding_layer() -> None:
    plain = small_encoder()
    table = plain.get_embedding_table().numpy()
    called_with = []

    def lookup(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        called_with.append(ids)
        return table[ids]

    encoder = small_encoder(embedding_layer=lookup)
    assert len(encoder.weights) == len(plain.weights) - 1
    encoder.set_weights(plain.get_weights()[1:])
    assert_same_outputs(encoder(small_inputs()), plain(small_inputs()))
    np.testing.assert_array_equal(called_with[0], small_inputs()["input_word_ids"])
    assert encoder.get_embedding_layer() is lookup


def test_shared_embedding_layer_lends_its_weights() -> None:
    first = small_encoder(seed=1)
    second = small_encoder(seed=2, embedding_layer=first.get_embedding_layer())
    assert second.weights[0] is first.weights[0]
    assert second.get_embedding_table() is first.get_embedding_table()
    second.set_weights(first.get_weights())
    assert_same_outputs(first(small_inputs()), second(small_inputs()))


# Calling


def test_outputs_have_the_references_form() -> None:
    outputs = small_encoder()(small_inputs(batch=3))
    assert list(outputs) == ["sequence_output", "pooled_output", "encoder_outputs"]
    assert outputs["pooled_output"].shape == (3, WIDTH)
    assert [output.shape for output in outputs["encoder_outputs"]] == [(3, LENGTH, WIDTH)] * 3
    np.testing.assert_array_equal(outputs["sequence_output"], outputs["encoder_outputs"][-1])
    assert {outputs["sequence_output"].dtype, outputs["pooled_output"].dtype} == {np.dtype(np.float32)}


def test_selected_outputs_equal_those_of_the_full_call() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    full = encoder(inputs)
    for names in (("pooled_output",), ("sequence_output",), ("encoder_outputs", "pooled_output"), ()):
        chosen = encoder(inputs, outputs=names)
        assert_same_outputs(chosen, {name: full[name] for name in chosen})
        assert set(chosen) == set(names)


def test_routing_can_be_asked_for() -> None:
    (routing,) = small_encoder()(small_inputs(), outputs=("routing",))["routing"]
    assert routing["probabilities"].shape == (2, LENGTH, 4)
    assert routing["indices"].shape == (2, 4, 2)
    assert routing["indices"].dtype == np.int32
    np.testing.assert_allclose(routing["probabilities"].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("convert", [np.int64, np.int8, np.uint8, np.uint16, np.float32, ">i4"])
def test_ids_of_any_integral_type(convert: Any) -> None:
    inputs = small_inputs()
    converted = {key: value.astype(convert) for key, value in inputs.items()}
    encoder = small_encoder()
    assert_same_outputs(encoder(converted), encoder(inputs))


def test_lists_and_strided_arrays_are_accepted() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    expected = encoder(inputs)
    assert_same_outputs(encoder({key: value.tolist() for key, value in inputs.items()}), expected)
    assert_same_outputs(encoder({key: np.repeat(value, 2, 1)[:, ::2] for key, value in inputs.items()}), expected)
    assert_same_outputs(encoder({key: np.asfortranarray(value) for key, value in inputs.items()}), expected)
    assert_same_outputs(encoder(inputs | {"unknown_key": "ignored"}), expected)


def test_word_embeddings_replace_the_ids() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    table = encoder.get_embedding_table().numpy()
    ids = inputs["input_word_ids"]
    given = inputs | {"input_word_embeddings": table[ids], "input_word_ids": ids + 1000}
    assert_same_outputs(encoder(given), encoder(inputs))
    del given["input_word_ids"]
    given["input_word_embeddings"] = table[ids].astype(np.float64)
    assert_same_outputs(encoder(given), encoder(inputs))


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("words", [0, 5, LENGTH])
def test_dense_inputs_come_last(words: int, flag: bool) -> None:
    encoder, inputs = small_encoder(with_dense_inputs=flag), small_inputs()
    dense = encoder.get_embedding_table().numpy()[inputs["input_word_ids"]]
    split = {key: value[:, :words] for key, value in inputs.items()} | {
        "dense_inputs": dense[:, words:],
        "dense_mask": inputs["input_mask"][:, words:],
        "dense_type_ids": inputs["input_type_ids"][:, words:],
    }
    assert_same_outputs(encoder(split), encoder(inputs))
    assert len(encoder.inputs) == (6 if flag else 3)


def test_mask_is_optional_without_attention() -> None:
    encoder, inputs = small_encoder(attention_layers=()), small_inputs()
    expected = encoder(inputs)
    assert_same_outputs(encoder(inputs | {"input_mask": None}), expected)
    del inputs["input_mask"]
    assert_same_outputs(encoder(inputs), expected)


def test_empty_batches_give_empty_outputs() -> None:
    outputs = small_encoder()(small_inputs(batch=0))
    assert outputs["sequence_output"].shape == (0, LENGTH, WIDTH)
    assert outputs["pooled_output"].shape == (0, WIDTH)


def test_inputs_are_described() -> None:
    inputs = small_encoder().inputs
    assert {name: spec.shape for name, spec in inputs.items()} == {
        "input_word_ids": (None, LENGTH),
        "input_mask": (None, LENGTH),
        "input_type_ids": (None, LENGTH),
    }
    dense = small_encoder(with_dense_inputs=True, embedding_width=6).inputs["dense_inputs"]
    assert dense == ("dense_inputs", (None, None, 6), "float32")


# Training


@pytest.mark.parametrize("flag", [True, 1, np.bool_(True), np.ones((), bool)])
def test_training_is_repeatable_by_seed(flag: Any) -> None:
    encoder, inputs = small_encoder(), small_inputs()
    first = encoder(inputs, training=flag, seed=3)
    assert_same_outputs(encoder(inputs, training=True, seed=3), first)
    other = encoder(inputs, training=True, seed=4)
    assert (other["pooled_output"] != first["pooled_output"]).any()


def test_training_calls_without_a_seed_differ_but_repeat_with_the_encoder() -> None:
    def two_calls() -> list[dict[str, Any]]:
        encoder = small_encoder()
        return [encoder(small_inputs(), training=True) for _ in range(2)]

    (one, two), (one_again, two_again) = two_calls(), two_calls()
    assert (one["pooled_output"] != two["pooled_output"]).any()
    assert_same_outputs(one, one_again)
    assert_same_outputs(two, two_again)


@pytest.mark.parametrize("flag", [None, False, 0])
def test_inference_ignores_seed_and_dropout(flag: Any) -> None:
    encoder, inputs = small_encoder(output_dropout=0.5), small_inputs()
    assert_same_outputs(encoder(inputs, training=flag, seed=1), encoder(inputs))


# Losses and metrics

METRICS = [
    "unscaled_router_z_loss",
    "router_z_loss",
    "load_balancing_loss",
    "fraction_tokens_left_behind",
    "router_confidence",
    "expert_usage",
]


def test_losses_are_those_of_the_last_call() -> None:
    encoder = small_encoder(moe_layers=(0, 1), router_z_loss_weight=0.5)
    assert encoder.losses == []
    assert encoder.aux_losses == {}
    for seed in (1, 2):
        encoder(small_inputs(seed=seed))
    aux = encoder.aux_losses
    assert len(encoder.losses) == 2
    np.testing.assert_allclose(encoder.losses, 0.5 * aux["unscaled_router_z_loss"], rtol=1e-6)
    np.testing.assert_allclose(aux["total"], sum(encoder.losses), rtol=1e-6)
    np.testing.assert_array_equal(aux["moe_layers"], [0, 1])
    assert set(aux) == {*METRICS, "total", "expert_load", "moe_layers"}


def test_loads_are_shares_of_the_experts_answers() -> None:
    encoder = small_encoder(moe_layers=(1,), num_experts=4)
    outputs = encoder(small_inputs(3), outputs=("sequence_output", "routing"))
    (routing,) = outputs["routing"]
    group = np.arange(3)[:, None]
    picked = [routing["probabilities"][group, routing["indices"][:, e], e].sum() for e in range(4)]
    np.testing.assert_allclose(encoder.aux_losses["expert_load"], [picked / np.sum(picked)], rtol=1e-5)


def test_metrics_are_running_means() -> None:
    encoder = small_encoder(moe_layers=(0, 1))
    assert [metric.name for metric in encoder.metrics] == METRICS * 2
    values = []
    for seed in (1, 2, 3):
        encoder(small_inputs(seed=seed), training=seed == 2)
        values.append(encoder.aux_losses["router_confidence"])
    means = [metric.result() for metric in encoder.metrics if metric.name == "router_confidence"]
    np.testing.assert_allclose(means, np.mean(values, axis=0), rtol=1e-6)
    for metric in encoder.metrics:
        metric.reset_state()
        assert metric.result() == 0


def test_metrics_can_be_left_out() -> None:
    encoder = small_encoder(export_metrics=False)
    encoder(small_inputs())
    assert encoder.metrics == []
    assert len(encoder.losses) == 1


def test_zero_capacity_warns_and_keeps_the_references_metrics() -> None:
    encoder = small_encoder(eval_capacity_factor=0.05)
    with pytest.warns(UserWarning, match="capacity rounds to 0"):
        encoder(small_inputs())
    assert np.isinf(encoder.aux_losses["fraction_tokens_left_behind"]).all()
    assert np.isnan(encoder.aux_losses["router_confidence"]).all()


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


def test_memory_is_estimated() -> None:
    encoder = small_encoder()
    assert encoder.weight_bytes >= 4 * encoder.count_params()
    assert encoder.memory_estimate(8) > encoder.memory_estimate(1) > encoder.weight_bytes


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
