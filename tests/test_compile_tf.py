"""compile, fit, evaluate, predict beside tf_keras: the same lines with the reference's models and with ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_reference as reference
from encoders import ARGUMENTS, LENGTH, small_inputs
from sparse_mixer import SparseMixer, models

with reference._quiet():
    import tensorflow as tf
    import tf_keras
    from official.nlp import optimization
    from official.nlp.modeling import models as official_models

SIZES = {key: value for key, value in ARGUMENTS.items() if key != "seed"}
NO_DROPOUT = {"output_dropout": 0.0, "attention_dropout": 0.0}
EXAMPLES = 12
INPUTS = small_inputs(EXAMPLES, seed=3)
CLASSES = INPUTS["input_word_ids"][:, 0] % 3
SEVERAL = (INPUTS["input_word_ids"][:, :3] % 2).astype(np.float32)
TOKENS = INPUTS["input_word_ids"] % 3
SPANS = [CLASSES.astype(np.int64), CLASSES.astype(np.int64) + 2]

losses = tf_keras.losses
SPARSE = losses.SparseCategoricalCrossentropy(from_logits=True)


def pair(kind: str = "BertClassifier", *arguments: Any, dense: bool = False, **options: Any) -> tuple[Any, Any]:
    """The reference's model and ours with its weights, without dropout."""
    sizes = SIZES | NO_DROPOUT | ({"moe_layers": ()} if dense else {})
    with reference._quiet():
        encoder = reference.TensorFlowEncoder(sizes, INPUTS).layer
        theirs = getattr(official_models, kind)(encoder, *arguments, **options)
    ours = getattr(models, kind)(SparseMixer(**sizes, seed=1), *arguments, **options, seed=0)
    ours.set_weights(theirs.get_weights())
    return theirs, ours


def both(theirs: Any, ours: Any, use: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What `use` gives for either model."""
    with reference._quiet():
        return use(theirs), use(ours)


def assert_same_history(theirs: Any, ours: Any, names: list[str]) -> None:
    for name in names:
        np.testing.assert_allclose(ours.history[name], theirs.history[name], rtol=2e-5, atol=1e-5, err_msg=name)


CASES: dict[str, tuple[Any, ...]] = {
    "classes": ("BertClassifier", (3,), {"dropout_rate": 0.0}, SPARSE, CLASSES, ["accuracy"]),
    "own layer": ("BertClassifier", (3,), {"dropout_rate": 0.0, "use_encoder_pooler": False}, SPARSE, CLASSES, ["acc"]),
    "distributions": (
        "BertClassifier",
        (3,),
        {"dropout_rate": 0.0},
        losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        np.eye(3, dtype=np.float32)[CLASSES],
        ["accuracy", tf_keras.metrics.TopKCategoricalAccuracy(2, name="top")],
    ),
    "several classes": (
        "BertClassifier",
        (3,),
        {"dropout_rate": 0.0},
        losses.BinaryCrossentropy(from_logits=True),
        SEVERAL,
        ["binary_accuracy", tf_keras.metrics.BinaryAccuracy("zero", threshold=0.0)],
    ),
    "regression": ("BertClassifier", (1,), {"dropout_rate": 0.0}, "mse", SEVERAL[:, 0], ["mae"]),
    "tokens": ("BertTokenClassifier", (3,), {"dropout_rate": 0.0}, SPARSE, TOKENS, ["sparse_categorical_accuracy"]),
}


@pytest.mark.parametrize("case", CASES)
def test_training_gives_the_same_numbers(case: str) -> None:
    kind, arguments, options, loss, labels, metrics = CASES[case]
    theirs, ours = pair(kind, *arguments, **options)
    only = {"logits": labels} if kind == "BertTokenClassifier" else labels
    names = [metric if isinstance(metric, str) else metric.name for metric in metrics]

    def use(model: Any) -> tuple[Any, ...]:
        model.compile(tf_keras.optimizers.Adam(2e-3), loss, metrics, run_eagerly=True)
        history = model.fit(INPUTS, only, 4, 3, 0, validation_split=0.25, shuffle=False, validation_data=None)
        return history, model.evaluate(INPUTS, only, 4, 0), model.predict(INPUTS, 5, 0)

    (history, evaluated, predicted), (own_history, own_evaluated, own_predicted) = both(theirs, ours, use)
    seen = ["loss", "val_loss", *names, *(f"val_{name}" for name in names)]
    assert_same_history(history, own_history, seen)
    assert len(own_history.history["loss"]) == 3
    # Behind these, Keras has the routers' metrics, one by one.
    np.testing.assert_allclose(own_evaluated, evaluated[: 1 + len(names)], rtol=2e-5, atol=1e-5)
    assert ours.metrics_names == theirs.metrics_names[: 1 + len(names)]
    if isinstance(predicted, dict):
        predicted, own_predicted = predicted["logits"], own_predicted["logits"]
    np.testing.assert_allclose(own_predicted, predicted, atol=1e-4)


def test_losses_of_spans_are_added_up() -> None:
    theirs, ours = pair("BertSpanLabeler")
    for weights in (None, [0.5, 0.25]):

        def use(model: Any, weights: Any = weights) -> tuple[Any, ...]:
            model.compile("sgd", SPARSE, ["accuracy"], weights, run_eagerly=True)
            history = model.fit(INPUTS, SPANS, batch_size=4, epochs=2, verbose=0, shuffle=False)
            return history, model.test_on_batch(INPUTS, SPANS, return_dict=True)

        (history, tested), (own, own_tested) = both(theirs, ours, use)
        names = ["loss", "start_positions_loss", "end_positions_loss", "end_positions_accuracy"]
        assert_same_history(history, own, names)
        for name in names:
            assert own_tested[name] == pytest.approx(tested[name], abs=1e-5), name


@pytest.mark.parametrize(
    "weights",
    [
        {"sample_weight": np.linspace(0.0, 2.0, EXAMPLES).astype(np.float32)},
        {"class_weight": {0: 0.5, 1: 1.0, 2: 3.0}},
        {
            "class_weight": {0: 1.0, 1: 0.25, 2: 1.0},
            "sample_weight": np.linspace(0.5, 2.0, EXAMPLES).astype(np.float32),
        },
    ],
    ids=["samples", "classes", "both"],
)
def test_weights_of_examples(weights: dict[str, Any]) -> None:
    theirs, ours = pair("BertClassifier", 3, dropout_rate=0.0)

    def use(model: Any) -> Any:
        model.compile(
            tf_keras.optimizers.SGD(0.1, momentum=0.9), SPARSE, ["accuracy"], weighted_metrics=["acc"], run_eagerly=True
        )
        return model.fit(INPUTS, CLASSES, batch_size=4, epochs=2, verbose=0, shuffle=False, **weights)

    history, own = both(theirs, ours, use)
    assert_same_history(history, own, ["loss", "accuracy", "acc"])


def garden_optimizer() -> Any:
    return optimization.create_optimizer(5e-3, 8, 2, optimizer_type="adamw")


def steps_with_nesterov() -> Any:
    rates = tf_keras.optimizers.schedules.PiecewiseConstantDecay([3, 6], [0.05, 0.02, 0.01])
    return tf_keras.optimizers.SGD(rates, momentum=0.9, nesterov=True)


def decays_but_biases() -> Any:
    optimizer = tf_keras.optimizers.Adam(2e-3, weight_decay=5.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "layer_norm"])
    return optimizer


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "nesterov and a schedule": steps_with_nesterov,
    "decay without biases": decays_but_biases,
    "adam": lambda: "adam",
    "AdamW": lambda: tf_keras.optimizers.AdamW(2e-3, weight_decay=0.1, global_clipnorm=0.5),
    "legacy Adam": lambda: tf_keras.optimizers.legacy.Adam(2e-3, epsilon=1e-5),
    "schedule": lambda: tf_keras.optimizers.SGD(tf_keras.optimizers.schedules.CosineDecay(0.1, 5, 0.1), nesterov=True),
    "Adafactor": lambda: tf_keras.optimizers.Adafactor(0.01),
    "create_optimizer": garden_optimizer,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_keras(name: str) -> None:
    theirs, ours = pair("BertClassifier", 3, dropout_rate=0.0)

    def use(model: Any) -> Any:
        model.compile(optimizer=OPTIMIZERS[name](), loss=SPARSE, metrics=["accuracy"], run_eagerly=True)
        return model.fit(INPUTS, CLASSES, batch_size=4, epochs=3, verbose=0, shuffle=False)

    history, own = both(theirs, ours, use)
    # Keras clips a table's gradient by its rows before these are added up.
    tolerance = 2e-3 if name in ("AdamW", "create_optimizer") else 2e-4
    np.testing.assert_allclose(own.history["loss"], history.history["loss"], rtol=tolerance)


def test_datasets_make_their_own_batches() -> None:
    theirs, ours = pair("BertClassifier", 3, dropout_rate=0.0)
    data = tf.data.Dataset.from_tensor_slices((INPUTS, CLASSES)).batch(5)

    def use(model: Any) -> tuple[Any, ...]:
        model.compile(tf_keras.optimizers.Adam(1e-3), SPARSE, ["accuracy"], run_eagerly=True)
        history = model.fit(data, epochs=2, verbose=0, validation_data=data, validation_steps=1)
        repeated = model.fit(data.repeat(), epochs=2, verbose=0, steps_per_epoch=2)
        return history, repeated, model.predict(data, verbose=0), model.evaluate(data, verbose=0, steps=2)

    (history, repeated, predicted, evaluated), own = both(theirs, ours, use)
    assert_same_history(history, own[0], ["loss", "val_loss", "val_accuracy"])
    assert_same_history(repeated, own[1], ["loss"])
    np.testing.assert_allclose(own[2], predicted, atol=1e-4)
    np.testing.assert_allclose(own[3], evaluated[:2], rtol=2e-5, atol=1e-5)
    assert len(ours.fit(data, epochs=1, batch_size=2, verbose=0).steps) == 3


def test_one_batch_at_a_time() -> None:
    theirs, ours = pair("BertClassifier", 3, dropout_rate=0.0)

    def use(model: Any) -> list[Any]:
        model.compile(tf_keras.optimizers.Adam(1e-3), SPARSE, ["accuracy"], run_eagerly=True)
        batch = ({name: array[:4] for name, array in INPUTS.items()}, CLASSES[:4])
        numbers = [model.train_on_batch(*batch)[:2] for _ in range(3)]
        return [*numbers, model.test_on_batch(*batch)[:2], model.test_on_batch(*batch, np.full(4, 2.0))[:2]]

    np.testing.assert_allclose(*both(theirs, ours, use), rtol=2e-5, atol=1e-5)


class Noted(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """A callback of one's own: notes the hooks with the numbers that they get."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.seen.append(("train", self.params["epochs"], self.params["steps"]))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(("epoch", epoch, float(tf_keras.backend.get_value(self.model.optimizer.lr))))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("batch", batch, round(logs["loss"], 4)))

    def on_test_end(self, logs: Any = None) -> None:
        self.seen.append(("test", round(logs["loss"], 4)))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(("end", epoch, round(logs["val_loss"], 4)))

    def on_train_end(self, logs: Any = None) -> None:
        self.seen.append(("over",))


def _losses(drawn: list[str]) -> list[str]:
    return [name for name in drawn if "loss" in name and not any(part in name for part in ("router", "load", "task"))]


def test_callbacks_of_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras's own callbacks, and one that inherits from its base."""
    drawn: list[str] = []
    # Writing them needs TensorBoard itself.
    monkeypatch.setattr(tf.compat.v2.summary, "scalar", lambda name, data, step: drawn.append(f"{name} {int(step)}"))
    theirs, ours = pair("BertClassifier", 3, dropout_rate=0.0)

    def use(model: Any) -> tuple[Any, ...]:
        folder = tmp_path / type(model).__module__.split(".")[0]
        noted, called = Noted(), []
        drawn.clear()
        keras = tf_keras.callbacks
        model.compile(tf_keras.optimizers.SGD(0.5), SPARSE, ["accuracy"], run_eagerly=True)
        history = model.fit(
            INPUTS,
            CLASSES,
            batch_size=6,
            epochs=6,
            initial_epoch=1,
            verbose=0,
            shuffle=False,
            validation_data=(INPUTS, (CLASSES + 1) % 3),
            callbacks=[
                keras.LearningRateScheduler(lambda epoch, rate: rate * (0.5 if epoch == 2 else 1.0)),
                keras.ReduceLROnPlateau("val_loss", factor=0.1, patience=1, min_delta=0.0),
                keras.LambdaCallback(on_epoch_end=lambda epoch, logs: called.append(epoch)),
                keras.CSVLogger(folder.with_suffix(".csv")),
                keras.TensorBoard(folder / "logs", write_graph=False, histogram_freq=0),
                keras.EarlyStopping("val_loss", patience=3, restore_best_weights=True),
                noted,
            ],
        )
        header, *rows = folder.with_suffix(".csv").read_text().splitlines()
        return history, noted.seen, called, len(rows), "val_accuracy" in header, _losses(drawn), model.get_weights()[-1]

    (history, *seen, weights), (own_history, *own_seen, own_weights) = both(theirs, ours, use)
    assert_same_history(history, own_history, ["loss", "val_loss", "lr"])
    for one, other in zip(own_seen[0], seen[0], strict=True):
        assert one[0] == other[0]
        assert one[1:] == pytest.approx(other[1:], abs=2e-4), one
    assert own_seen[1:] == seen[1:]
    np.testing.assert_allclose(own_weights, weights, atol=1e-4)


def test_checkpoints_of_keras_callback(tmp_path: Path) -> None:
    _, ours = pair("BertClassifier", 3, dropout_rate=0.0)
    ours.compile("adam", SPARSE)
    path = f"{tmp_path}/{{epoch:02d}}.safetensors"
    ours.fit(INPUTS, CLASSES, epochs=2, verbose=0, callbacks=tf_keras.callbacks.ModelCheckpoint(path, "loss"))
    again = models.BertClassifier.load(tmp_path / "02.safetensors")
    np.testing.assert_array_equal(again(INPUTS), ours(INPUTS))
    assert (tmp_path / "01.safetensors").exists()


def test_regression_of_a_generator_with_class_weights() -> None:
    """Batches of an iterable are weighted as arrays are."""
    _, ours = pair("BertClassifier", 3, dropout_rate=0.0)
    ours.compile("sgd", SPARSE)
    weights = {0: 0.5, 2: 3.0}
    halves = [
        ({name: array[half] for name, array in INPUTS.items()}, CLASSES[half]) for half in (slice(0, 6), slice(6, 12))
    ]
    results = []
    start = ours.get_weights()
    for data, options in [
        ((INPUTS, CLASSES), {"batch_size": 6, "shuffle": False}),
        (halves, {}),
        (lambda epoch: halves, {}),
    ]:
        ours.set_weights(start)
        results.append(ours.fit(data, class_weight=weights, seed=1, verbose=0, **options).history["loss"])
    assert results[0] == results[1] == results[2]
    assert math.isfinite(results[0][0])


def test_inputs_in_their_order() -> None:
    _, ours = pair("BertClassifier", 3, dropout_rate=0.0)
    listed = [INPUTS["input_word_ids"], INPUTS["input_mask"], INPUTS["input_type_ids"]]
    expected = ours(INPUTS)
    np.testing.assert_array_equal(ours(listed), expected)
    np.testing.assert_array_equal(ours.predict(listed, batch_size=5), expected)
    ours.compile("sgd", SPARSE)
    assert ours.evaluate(listed, CLASSES) == ours.evaluate(INPUTS, CLASSES)
    assert ours.fit(listed, CLASSES, verbose=0, validation_data=(listed, CLASSES)).history["val_loss"]
    assert listed[0].shape[1] == LENGTH
