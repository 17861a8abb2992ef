"""Objects of tf_keras and of Keras 3 given to our models: taken with the same meaning, or refused by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_reference as reference
from encoders import small_encoder, small_inputs
from sparse_mixer import models

tf = reference.tf

INPUTS = small_inputs(12, seed=3)
CLASSES = INPUTS["input_word_ids"][:, 0] % 3
ONE_HOT = np.eye(3, dtype=np.float32)[CLASSES]


@pytest.fixture(params=["tf_keras", "keras"])
def keras(request: pytest.FixtureRequest) -> Iterator[Any]:
    with reference._quiet():
        try:
            framework = importlib.import_module(request.param)
        except ImportError:
            pytest.skip(f"needs {request.param}")
        yield framework


def compiled(optimizer: Any = "sgd", loss: Any = None, *more: Any, **options: Any) -> Any:
    model = models.BertClassifier(small_encoder(), 3, seed=0)
    model.compile(optimizer, loss, *more, **options)
    return model


def fitted(model: Any, callbacks: Any = (), labels: Any = CLASSES, **options: Any) -> Any:
    options = {"batch_size": 4, "epochs": 2, "verbose": 0, "shuffle": False, "seed": 1} | options
    return model.fit(INPUTS, labels, callbacks=callbacks, **options).history


def schedules(keras: Any) -> dict[str, Any]:
    made = keras.optimizers.schedules
    return {
        "polynomial": made.PolynomialDecay(0.1, 5),
        "polynomial again and again": made.PolynomialDecay(0.1, 3, cycle=True),
        "cosine": made.CosineDecay(0.1, 5, 0.1),
        "cosine after a warm-up": made.CosineDecay(0.0, 5, warmup_target=0.1, warmup_steps=2),
        "cosine with restarts": made.CosineDecayRestarts(0.1, 3),
        "exponential": made.ExponentialDecay(0.1, 3, 0.5, staircase=True),
        "inverse time": made.InverseTimeDecay(0.1, 3, 0.5),
        "pieces": made.PiecewiseConstantDecay([2, 4], [0.1, 0.05, 0.01]),
    }


def test_schedules_by_object_and_by_config(keras: Any) -> None:
    for name, schedule in schedules(keras).items():
        optimizer = keras.optimizers.SGD(schedule)
        for given in (optimizer, keras.optimizers.serialize(optimizer)):
            rate = compiled(given).optimizer.learning_rate
            for step in range(7):
                assert rate(step) == pytest.approx(float(np.asarray(schedule(step))), rel=1e-6), (name, step)


def test_schedules_of_ones_own_need_no_config(keras: Any) -> None:
    class Falling(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __init__(self) -> None:
            self.start = 0.1

        def __call__(self, step: Any) -> Any:
            return self.start / (tf.cast(step, tf.float32) + 1.0)

    optimizer = keras.optimizers.Adam(Falling(), beta_1=0.5)
    model = compiled(optimizer)
    fitted(model)
    assert model.optimizer.get_config()["beta_1"] == 0.5
    assert model.optimizer.current_learning_rate() == pytest.approx(0.1 / 7)


def test_optimizers_by_object_config_and_name_are_the_same(keras: Any) -> None:
    made = keras.optimizers
    for name in ("Adam", "AdamW", "SGD", "Adafactor", *(["Lamb"] if keras.__name__ == "keras" else [])):
        named = compiled(name).optimizer.get_config()
        written = compiled({"class_name": name, "config": {}}).optimizer.get_config()
        own = getattr(made, name)()
        for given in (own, made.serialize(own)):
            config = compiled(given).optimizer.get_config()
            for other in (named, written):
                assert {k: v for k, v in other.items() if k != "learning_rate"} == {
                    k: v for k, v in config.items() if k != "learning_rate"
                }, name
                assert other["learning_rate"] == pytest.approx(config["learning_rate"])


def test_what_has_no_counterpart_is_refused_by_name(keras: Any) -> None:
    optimizers, losses, metrics = keras.optimizers, keras.losses, keras.metrics

    class OwnUpdate(optimizers.Adam):  # type: ignore[misc]
        def update_step(self, *arguments: Any, **options: Any) -> None:
            raise AssertionError

    class OwnLoss(losses.SparseCategoricalCrossentropy):  # type: ignore[misc]
        def call(self, y_true: Any, y_pred: Any) -> Any:
            raise AssertionError

    class OwnMetric(metrics.SparseCategoricalAccuracy):  # type: ignore[misc]
        def update_state(self, *arguments: Any, **options: Any) -> Any:
            raise AssertionError

    cases: list[tuple[str, dict[str, Any]]] = [
        *((f"{k}={v!r}", {"optimizer": optimizers.Adam(**{k: v})}) for k, v in REFUSED_SETTINGS.items()),
        ("beta_9=1", {"optimizer": {"class_name": "Adam", "config": {"beta_9": 1}}}),
        ("Nadam .*possible", {"optimizer": optimizers.Nadam()}),
        ("'rmsprop'; possible", {"optimizer": "rmsprop"}),
        (r"OwnUpdate.*\(update_step\).*possible", {"optimizer": OwnUpdate()}),
        (r"OwnLoss.*\(call\).*possible", {"loss": OwnLoss(from_logits=True)}),
        ("from_logits=True", {"loss": losses.SparseCategoricalCrossentropy()}),
        ("from_logits=True", {"loss": "binary_crossentropy"}),
        ("axis=1", {"loss": losses.CategoricalCrossentropy(from_logits=True, axis=1)}),
        ("reduction='none'", {"loss": losses.CategoricalCrossentropy(from_logits=True, reduction="none")}),
        ("Huber .*possible", {"loss": losses.Huber()}),
        ("gives no gradient.*possible", {"loss": losses.sparse_categorical_crossentropy}),
        ("loss_weights: got 0.5", {"loss_weights": [0.5]}),
        ("loss_weights: no outputs .*'other'", {"loss_weights": {"other": 0.5}}),
        (r"OwnMetric.*\(update_state\).*possible", {"metrics": [OwnMetric()]}),
        ("AUC .*possible", {"metrics": [metrics.AUC(from_logits=True)]}),
        ("F1Score .*possible", {"metrics": [metrics.F1Score()]}),
        ("ignore_class=1", {"metrics": [metrics.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1)]}),
    ]
    if keras.__name__ == "keras":
        weighted = losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
        cases += [
            ("reduction='mean_with_sample_weight'", {"loss": weighted}),
            ("reduction=None", {"loss": losses.CategoricalCrossentropy(from_logits=True, reduction=None)}),
            ("accumulation_steps=2.*fit", {"optimizer": optimizers.Adam(gradient_accumulation_steps=2)}),
        ]
    for message, options in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            compiled(**options)


REFUSED_SETTINGS = {"clipnorm": 1.0, "clipvalue": 0.5, "use_ema": True, "amsgrad": True}


def test_losses_by_object_config_and_for_each_output(keras: Any) -> None:
    made = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    expected = fitted(compiled(loss=made), labels=ONE_HOT)["loss"]
    assert fitted(compiled(loss=keras.losses.serialize(made)), labels=ONE_HOT)["loss"] == expected
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    assert fitted(compiled(loss=plain), labels=ONE_HOT)["loss"] != expected
    spans = models.BertSpanLabeler(small_encoder())
    losses = {name: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for name in spans.output_names}
    spans.compile("sgd", losses)
    assert np.isfinite(spans.train_on_batch(INPUTS, [CLASSES, CLASSES])).all()


def hooks_of(keras: Any) -> Any:
    """A callback of the framework's that notes every call, and ends the run after a step."""

    class Noted(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen.append(("train_batch_end", batch, "loss" in logs))
            if len([entry for entry in self.seen if entry[0] == "train_batch_end"]) == 5:
                self.model.stop_training = True

    def noting(name: str) -> Any:
        def hook(self: Any, *arguments: Any, logs: Any = None) -> None:
            numbers = [entry for entry in arguments if isinstance(entry, int)]
            logs = logs or next((entry for entry in arguments if isinstance(entry, dict)), None)
            self.seen.append((name, *numbers, "loss" in (logs or {}), "val_loss" in (logs or {})))

        return hook

    for kind in ("train", "epoch", "test", "test_batch", "train_batch"):
        for when in ("begin", "end"):
            if (kind, when) != ("train_batch", "end"):
                setattr(Noted, f"on_{kind}_{when}", noting(f"{kind}_{when}"))
    return Noted()


def test_hooks_come_as_from_keras(keras: Any) -> None:
    """Every hook with its numbers, in a run that ends in the middle of the second epoch."""
    dense = keras.Sequential([keras.layers.Dense(3)])
    dense.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    features = np.ones((12, 2), np.float32)
    theirs, ours = hooks_of(keras), hooks_of(keras)
    options = {"batch_size": 4, "epochs": 3, "verbose": 0}
    history = dense.fit(features, CLASSES, callbacks=[theirs], validation_data=(features, CLASSES), **options).history
    own = fitted(compiled(), [ours], epochs=3, validation_data=(INPUTS, CLASSES))
    assert ours.seen == theirs.seen
    assert ours.params == theirs.params
    assert len(own["loss"]) == len(history["loss"]) == len(own["val_loss"]) == 2


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would draw of the files in a folder."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    return found


def test_files_for_tensorboard_hold_the_history(keras: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for frequency in ("epoch", "batch"):
        folder = tmp_path / frequency
        callback = keras.callbacks.TensorBoard(folder, write_graph=False, update_freq=frequency)
        history = fitted(compiled(metrics=["accuracy"]), [callback], validation_data=(INPUTS, CLASSES))
        train, validation = scalars(folder / "train"), scalars(folder / "validation")
        for name in ("loss", "accuracy"):
            assert [step for step, _ in train[f"epoch_{name}"]] == [0, 1]
            np.testing.assert_allclose([v for _, v in train[f"epoch_{name}"]], history[name], rtol=1e-6)
            np.testing.assert_allclose([v for _, v in validation[f"epoch_{name}"]], history[f"val_{name}"], rtol=1e-6)
        if frequency == "batch":
            assert len(train["batch_loss"]) == 6


def test_callbacks_of_keras_change_and_keep_what_they_say(keras: Any, tmp_path: Path) -> None:
    made, best = keras.callbacks, tmp_path / "best.weights.h5"
    model = compiled(keras.optimizers.SGD(0.5), metrics=["accuracy"])
    stopping = made.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    others = [
        made.ModelCheckpoint(str(best), "val_loss", save_best_only=True, save_weights_only=True),
        made.ReduceLROnPlateau("val_loss", factor=0.1, patience=1, min_delta=0.0),
        made.LearningRateScheduler(lambda epoch, rate: rate * (0.5 if epoch == 1 else 1.0)),
        made.CSVLogger(str(tmp_path / "log.csv"), separator=";"),
        made.TerminateOnNaN(),
        made.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(seen=epoch)),
    ]
    # Labels that training makes ever less likely.
    history = fitted(model, [stopping, *others], epochs=30, validation_data=(INPUTS, (CLASSES + 1) % 3))
    count = int(np.argmin(history["val_loss"])) + 3
    assert len(history["loss"]) == count < 30
    assert history["seen"] == list(range(count))
    assert model.optimizer.learning_rate < 0.05
    assert len((tmp_path / "log.csv").read_text().splitlines()) == count + 1
    other = models.BertClassifier(small_encoder(), 3, seed=5)
    other.load_weights(best)
    np.testing.assert_array_equal(other(INPUTS), model(INPUTS))


def test_callbacks_that_cannot_work_say_so(keras: Any, tmp_path: Path) -> None:
    made = keras.callbacks

    class Curious(made.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.make_train_function()

    class Saving(made.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.save_weights(tmp_path / "weights", save_format="tf")

    scheduled = keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(0.1, 5))
    cases: list[tuple[type[Exception], str, Any, Any]] = [
        (ValueError, r"BackupAndRestore needs .*state_path", made.BackupAndRestore(str(tmp_path / "backup")), "sgd"),
        (ValueError, r"best\.h5.* use .*weights\.h5", made.ModelCheckpoint(str(tmp_path / "best.h5")), "sgd")
        if keras.__name__ == "tf_keras"
        else (ValueError, r"best\.keras.* use ", made.ModelCheckpoint(str(tmp_path / "best.keras")), "sgd"),
        (TypeError, "has a schedule", made.LearningRateScheduler(lambda epoch: 0.1), scheduled),
        (AttributeError, "BertClassifier has no 'make_train_function'", Curious(), "sgd"),
        (ValueError, "save_format: got 'tf'", Saving(), "sgd"),
        (TypeError, "expected .* got History", made.History, "sgd"),
    ]
    for error, message, callback, optimizer in cases:
        with pytest.raises(error, match=message):
            fitted(compiled(optimizer), [callback])
