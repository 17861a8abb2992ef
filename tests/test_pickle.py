"""Copies of encoders: pickle, deepcopy, other processes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import VOCAB_SIZE, WIDTH, assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import models, optimizers, schedules, training
from sparse_mixer.gradients import Gradients
from sparse_mixer.masking import mask_tokens


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_pickle_round_trip(protocol: int, dtype: str) -> None:
    encoder = small_encoder(dtype=dtype, name="kept", inner_activation="relu", norm_first=True)
    encoder.transformer_layers[0].trainable = False
    loaded = pickle.loads(pickle.dumps(encoder, protocol))
    assert loaded.name == "kept"
    assert loaded.get_config() == encoder.get_config()
    assert [w.name for w in loaded.weights] == [w.name for w in encoder.weights]
    assert_same_outputs(loaded(small_inputs()), encoder(small_inputs()))
    # The sequence of dropout seeds starts afresh, as in a new encoder.
    fresh = small_encoder(dtype=dtype, inner_activation="relu", norm_first=True)
    assert_same_outputs(loaded(small_inputs(), training=True), fresh(small_inputs(), training=True))


def test_weights_travel_out_of_band() -> None:
    encoder = small_encoder()
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(encoder, 5, buffer_callback=buffers.append)
    assert len(data) < 20_000
    assert sum(buffer.raw().nbytes for buffer in buffers) == 4 * encoder.count_params()
    assert_same_outputs(pickle.loads(data, buffers=buffers)(small_inputs()), encoder(small_inputs()))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_are_independent(duplicate: Any) -> None:
    encoder = small_encoder()
    before = encoder(small_inputs())
    twin = duplicate(encoder)
    assert_same_outputs(twin(small_inputs()), before)
    twin.set_weights([weight * 0 for weight in twin.get_weights()])
    twin.trainable = False
    assert encoder.trainable
    assert_same_outputs(encoder(small_inputs()), before)


@pytest.mark.parametrize(
    "value",
    [
        sparse_mixer.MixingMechanism.HARTLEY,
        sparse_mixer.Activation(np.tanh, name="tanh of numpy"),
        sparse_mixer.initializers.VarianceScaling(2.0, mode="fan_out", seed=3),
    ],
)
def test_arguments_can_be_pickled(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value


def test_exceptions_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(sparse_mixer.InternalError("text")))
    assert isinstance(error, sparse_mixer.InternalError)
    assert error.args == ("text",)


# --- models, optimisers, gradients, and what else a program holds ---

ROUND_TRIPS: dict[str, Any] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


def labelled() -> tuple[dict[str, Any], Any]:
    return small_inputs(8), np.arange(8) % 2


def make_models() -> dict[str, tuple[models.Model, Any]]:
    inputs, labels = labelled()
    masked = mask_tokens(inputs, seed=0, mask_id=1, vocab_size=VOCAB_SIZE, special_ids=range(3), max_predictions=2)
    heads = [models.ClassificationHead(WIDTH, 2, name="one"), models.ClassificationHead(0, 2, use_encoder_pooler=True)]
    both = {"one_labels": labels, "next_sentence_labels": labels}
    return {
        "classifier": (models.BertClassifier(small_encoder(), 2, use_encoder_pooler=False), (inputs, labels)),
        "rounded": (models.BertClassifier(small_encoder(dtype="bfloat16"), 2), (inputs, labels)),
        "tokens": (models.BertTokenClassifier(small_encoder(), 3), (inputs, inputs["input_word_ids"] % 3)),
        "spans": (
            models.BertSpanLabeler(small_encoder()),
            (inputs, {"start_positions": labels, "end_positions": labels}),
        ),
        "pretrainer": (models.BertPretrainerV2(small_encoder(), "gelu", classification_heads=heads), masked | both),
    }


def update(model: models.Model, batch: Any, optimizer: optimizers.Optimizer, seed: int) -> None:
    _, gradients = model.loss_and_gradients(batch, seed=seed)
    optimizer.apply_gradients(model, gradients)


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("rule", ["AdamW", "LAMB", "SGD", "Adafactor"])
@pytest.mark.parametrize("kind", ["classifier", "rounded", "tokens", "spans", "pretrainer"])
def test_a_model_and_its_used_optimizer_go_on_with_the_same_bits(kind: str, rule: str, way: str) -> None:
    model, batch = make_models()[kind]
    schedule = schedules.LinearWarmup(schedules.PolynomialDecay(1e-2, 9), 3)
    optimizer = getattr(optimizers, rule)(schedule, global_clipnorm=1.0)
    model.encoder.layers[1].trainable = False
    model.trainable_weights[-1].trainable = False
    for seed in range(3):
        update(model, batch, optimizer, seed)
    twin, its_optimizer = ROUND_TRIPS[way]((model, optimizer))
    assert type(twin) is type(model)
    assert its_optimizer.iterations == 3
    assert [w.key for w in twin.trainable_weights] == [w.key for w in model.trainable_weights]
    assert twin.get_config() == model.get_config()
    assert all(part._encoder is twin.encoder for part in twin.parts[1:])
    mine, its = optimizer.get_state(), its_optimizer.get_state()
    assert mine[0] == its[0]
    assert mine[1].keys() == its[1].keys()
    for name in mine[1]:
        np.testing.assert_array_equal(mine[1][name], its[1][name])
    before = [array.copy() for array in model.get_weights()]
    for seed in range(3, 6):
        update(twin, batch, its_optimizer, seed)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)  # the copy's updates are its own
    for seed in range(3, 6):
        update(model, batch, optimizer, seed)
    for one, other in zip(twin.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert its_optimizer.iterations == 6


def test_what_a_subclass_adds_goes_with_it() -> None:
    encoder = small_encoder()
    encoder.tokenizer_name = "words.json"
    encoder.weights[3].trainable = False
    for way in ROUND_TRIPS.values():
        twin = way(encoder)
        assert twin.tokenizer_name == "words.json"
        assert [w.trainable for w in twin._variables] == [w.trainable for w in encoder._variables]


@pytest.mark.parametrize("way", ROUND_TRIPS)
def test_gradients_are_copied_by_value(way: str) -> None:
    model, batch = make_models()["classifier"]
    _, gradients = model.loss_and_gradients(batch, seed=0)
    expected = {key: np.array(value) for key, value in gradients.items()}
    twin = ROUND_TRIPS[way](gradients)
    gradients.clear()
    assert twin.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(twin[key], value)
    # The head does not use the pooler: what was not reached stays without a gradient.
    encoder = twin.parts[0]
    before = encoder.pooler_layer.get_weights()
    of_encoder = Gradients(encoder, [twin.buffers[0]])
    optimizers.AdamW(1e-2, exclude_from_weight_decay=()).apply_gradients(encoder, of_encoder)
    for one, other in zip(before, encoder.pooler_layer.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("way", ROUND_TRIPS)
def test_parts_and_variables_are_copied_by_value(way: str) -> None:
    encoder = small_encoder()
    for part in (encoder.layers[3], encoder.get_embedding_layer(), encoder.weights[2], encoder.pooler_layer):
        if way == "copy" and not hasattr(part, "assign"):
            continue  # a shallow copy of a layer shows the same weights
        twin = ROUND_TRIPS[way](part)
        assert repr(twin) == repr(part)
        values = [w.numpy() for w in getattr(twin, "weights", [twin])]
        for variable in getattr(part, "weights", [part]):
            variable.assign(variable.numpy() + 1)
        for variable, value in zip(getattr(twin, "weights", [twin]), values, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)
    words = copy.deepcopy(encoder.get_embedding_layer())
    np.testing.assert_array_equal(words([[1, 2]]), encoder.get_embedding_layer()([[1, 2]]))


@pytest.mark.parametrize("way", ROUND_TRIPS)
def test_a_tape_refuses_clearly(way: str) -> None:
    _, vjp = small_encoder().vjp(small_inputs())
    with pytest.raises(TypeError, match=r"a VJP .* cannot be copied or pickled: copy the encoder and the inputs"):
        ROUND_TRIPS[way](vjp)


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_runs_histories_and_callbacks_travel(way: str, tmp_path: Any) -> None:
    callbacks = [
        training.EarlyStopping("loss", restore_best_weights=True),
        training.JSONLLogger(tmp_path / "log.jsonl"),
        training.CSVLogger(tmp_path / "log.csv"),
        training.ProgressBar(),
    ]
    model = models.BertClassifier(small_encoder(), 2)
    optimizer = optimizers.AdamW(1e-3)
    run = training.Trainer(model, labelled(), optimizer=optimizer, epochs=2, batch_size=4, callbacks=callbacks)
    run.run()
    twin = ROUND_TRIPS[way](run)
    assert twin.history == run.history
    assert twin.batches_done == run.batches_done == 4
    for one, other in ((run, twin), (callbacks, ROUND_TRIPS[way](callbacks))):
        assert type(one) is type(other)
    run.epochs = twin.epochs = 3
    assert run.run().steps == twin.run().steps
    for a, b in zip(run.model.get_weights(), twin.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_small_things_travel(way: str) -> None:
    encoder = small_encoder()
    encoder(small_inputs())
    values: list[Any] = [
        training.Metrics(loss=(1.0, 2.0)),
        training.History([{"loss": 1.0}], [(1.0, 0.1)]),
        models.ClassificationHead(0, 2),
        *(sparse_mixer.initializers.resolve(name) for name in ("glorot_uniform", "orthogonal", "zeros")),
        encoder.inputs,
        encoder.load_report({w.key: w.numpy() for w in encoder.weights}),
        encoder.arguments,
    ]
    for value in values:
        assert ROUND_TRIPS[way](value) == value
    mean = encoder.metrics[0]
    assert ROUND_TRIPS[way](mean).result() == mean.result()
