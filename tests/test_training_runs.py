"""Runs of `fit`: early stopping and resumption, states of other runs, logs, sources of data, arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import VOCAB_SIZE, WIDTH, small_encoder, small_inputs
from sparse_mixer import models, optimizers, training
from sparse_mixer.masking import mask_tokens
from sparse_mixer.training import callbacks


def data(examples: int = 24) -> tuple[dict[str, Any], Any]:
    """Inputs whose label is told by the first word."""
    inputs = small_inputs(examples)
    return inputs, (inputs["input_word_ids"][:, 0] >= VOCAB_SIZE // 2).astype(np.int64)


def assert_same_weights(one: Any, other: Any) -> None:
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class StopAfter(callbacks.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        trainer.stop = trainer.step == self.step


class Values(callbacks.Callback):
    """Puts numbers in the place of the validation losses."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_epoch_end(self, trainer: Any, logs: Any) -> None:
        logs["val_loss"] = self.values[trainer.epoch]


def early_stopping_run(state: Path | None, epochs: int = 40, *more: callbacks.Callback) -> training.Trainer:
    """Seven epochs, of which number 3 (from 0) is the best."""
    values = Values(5.0, 4.0, 4.5, 3.0, 3.5, 4.0, 3.5)
    stopping = callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    return training.Trainer(
        models.BertClassifier(small_encoder(), 2, seed=0),
        data(),
        optimizer=optimizers.AdamW(3e-3),
        epochs=epochs,
        batch_size=8,
        validation_data=data(8),
        callbacks=[values, stopping, *more],
        state_path=state,
        seed=0,
    )


def test_early_stopping_survives_stops_and_is_final(tmp_path: Path) -> None:
    whole = early_stopping_run(None)
    whole.run()
    assert len(whole.history.epochs) == 7
    best = early_stopping_run(None, 4)
    best.run()
    assert_same_weights(whole.model, best.model)

    # Stopped in the epoch after the best one, in a later one, and before.
    for step in (4 * 3 + 1, 5 * 3 + 2, 4):
        path = tmp_path / f"{step}.npz"
        first = early_stopping_run(path, 40, StopAfter(step))
        first.run()
        assert first.step == step
        second = early_stopping_run(path)
        second.restore(path)
        assert_same_weights(first.model, second.model)
        assert second.run() == whole.history
        assert_same_weights(second.model, whole.model)
        assert first.run() == whole.history, "the stopped run itself goes on, too"
        assert_same_weights(first.model, whole.model)
        for _ in range(2):
            again = early_stopping_run(path)
            again.restore(path)
            assert again.run() == whole.history
            assert_same_weights(again.model, whole.model)
    assert len(whole.run().epochs) == 7
    assert_same_weights(whole.model, best.model)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    """The state has the last weights beside the best ones, which the run gives back."""
    whole = early_stopping_run(None, 40)
    whole.run()
    path = tmp_path / "state.npz"
    short = early_stopping_run(path, 5)
    short.run()
    long = early_stopping_run(path, 40)
    long.restore(path)
    assert long.run() == whole.history
    assert_same_weights(long.model, whole.model)


@pytest.mark.parametrize(("patience", "epochs"), [(0, 3), (1, 3), (2, 4), (3, 5)])
def test_early_stopping_counts_as_keras(patience: int, epochs: int) -> None:
    values = Values(3.0, 2.0, np.nan, 2.0, 2.5, 2.5, 1.0)
    stopping = callbacks.EarlyStopping(patience=patience)
    inputs, labels = data(4)
    history = models.BertClassifier(small_encoder(), 2, seed=0).fit(
        (inputs, labels),
        optimizer=optimizers.SGD(),
        epochs=7,
        validation_data=(inputs, labels),
        callbacks=[values, stopping],
        progress=False,
        seed=0,
    )
    assert len(history.epochs) == epochs


def test_metrics_to_monitor_are_checked_early() -> None:
    model = models.BertClassifier(small_encoder(), 2, seed=0)
    before = model.get_weights()
    arguments: dict[str, Any] = {"optimizer": optimizers.SGD(), "progress": False}
    with pytest.raises(ValueError, match="monitor: 'val_loss' needs validation_data"):
        model.fit(data(), callbacks=[callbacks.EarlyStopping()], **arguments)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="monitor: got 'val_acc', expected one of"):
        model.fit(data(), validation_data=data(), callbacks=[callbacks.EarlyStopping("val_acc")], **arguments)
    assert arguments["optimizer"].iterations == 1


def test_validation_is_evaluation() -> None:
    """Bit for bit: in routing groups of two examples, the order of the examples would show."""
    inputs, labels = data(24)
    validation = small_inputs(20, seed=1), np.arange(20) % 2
    for given in (validation, batches_of(*validation, 8)):
        model = models.BertClassifier(small_encoder(examples_per_group=2.0, router_z_loss_weight=0.1), 2, seed=0)
        history = model.fit(
            (inputs, labels),
            optimizer=optimizers.AdamW(1e-2),
            epochs=2,
            batch_size=8,
            validation_data=given,
            progress=False,
            seed=0,
        )
        expected = model.evaluate(validation, batch_size=8)
        assert {name: history.epochs[-1][f"val_{name}"] for name in expected} == expected


def test_states_of_other_runs_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"

    def fit(optimizer: Any, model: Any = None, examples: int = 24, **arguments: Any) -> None:
        own = {"epochs": 1, "batch_size": 8, "state_path": path, "progress": False, "seed": 0} | arguments
        model = model or models.BertClassifier(small_encoder(), 2, seed=0)
        model.fit(data(examples), optimizer=optimizer, **own)

    def refusal(optimizer: Any, classes: int = 2, **arguments: Any) -> str:
        model = models.BertClassifier(small_encoder(), classes, seed=0)
        before = model.get_weights()
        remedy = "pass resume=False to start over, or another state_path"
        with pytest.raises(ValueError, match=rf"state\.npz: .*; {remedy}") as caught:
            fit(optimizer, model, **arguments)
        assert optimizer.get_state() == (0, {})
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        return str(caught.value)

    fit(optimizers.AdamW())
    assert "saved by a run with optimizer 'adamw', this one has 'lamb'" in refusal(optimizers.LAMB())
    assert "with batch_size 8, this one has 12" in refusal(optimizers.AdamW(), batch_size=12)
    assert "with accumulation_steps 1" in refusal(optimizers.AdamW(), accumulation_steps=2)
    assert "with shuffle True" in refusal(optimizers.AdamW(), shuffle=False)
    assert "with examples 24, this one has 20" in refusal(optimizers.AdamW(), examples=20)
    assert "with batches per epoch 3" in refusal(optimizers.AdamW(), steps_per_epoch=2)
    assert "with seed 0" in refusal(optimizers.AdamW(), seed=1)
    assert "another model; differing weights: ['sentence_prediction" in refusal(optimizers.AdamW(), classes=3)
    fit(optimizers.AdamW(), resume=False, seed=1)
    # Moments that do not fit are found before anything is changed.
    with np.load(path) as file:
        arrays = dict(file)
    name = next(name for name in arrays if name.startswith("moments/"))
    np.savez(path, **(arrays | {name: arrays[name][..., :1]}))
    assert f"{name.removeprefix('moments/')} has shape" in refusal(optimizers.AdamW(), seed=1)
    del arrays[name]
    np.savez(path, **arrays)
    assert "damaged: it has not all moments" in refusal(optimizers.AdamW(), seed=1)


def test_evaluation_does_not_depend_on_the_batch_size() -> None:
    inputs, labels = data(13)
    weights = np.linspace(0, 3, 13).astype(np.float32)
    inputs["input_word_ids"][::3, 2:] = 1  # tokens that are not predicted
    masked = mask_tokens(
        inputs, seed=3, mask_id=1, vocab_size=VOCAB_SIZE, special_ids=range(4), max_predictions=4, rate=0.6
    )
    assert len(set(masked["masked_lm_weights"].sum(1))) > 1
    for model, batches in [
        (models.BertClassifier(small_encoder(moe_layers=()), 2, seed=0), (inputs, labels, weights)),
        (
            models.BertTokenClassifier(small_encoder(moe_layers=()), 3, seed=0),
            (inputs, inputs["input_word_ids"] % 4 - 1),
        ),
        (models.BertPretrainerV2(small_encoder(moe_layers=()), seed=0), masked),
    ]:
        expected = model.evaluate(batches, batch_size=13)
        for size in (1, 4, 12):
            assert model.evaluate(batches, batch_size=size) == pytest.approx(expected, rel=1e-5)


def test_step_logs_go_on_after_a_crash(tmp_path: Path) -> None:
    path, state = tmp_path / "log" / "steps.jsonl", tmp_path / "state.npz"
    arguments = {"batch_size": 8, "validation_data": data(), "state_path": state, "progress": False, "seed": 0}

    def fit(epochs: int) -> None:
        logger = callbacks.JSONLLogger(path)
        model = models.BertClassifier(small_encoder(), 2, seed=0)
        model.fit(data(), optimizer=optimizers.AdamW(), epochs=epochs, callbacks=[logger], **arguments)

    fit(3)
    whole = path.read_text()
    entries = [json.loads(line) for line in whole.splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
    assert [entry["epoch"] for entry in entries if "val_accuracy" in entry] == [0, 1, 2]
    state.unlink()
    fit(2)
    with path.open("a") as file:
        file.write('{"step": 7, "epoch": 2, "loss": 1.0}\n{"step": 8, "epo')
    fit(3)
    assert path.read_text() == whole
    assert [file.name for file in path.parent.iterdir()] == ["steps.jsonl"]


def batches_of(inputs: Any, labels: Any, size: int) -> list[Any]:
    cut = [slice(start, start + size) for start in range(0, len(labels), size)]
    return [({name: value[part] for name, value in inputs.items()}, labels[part]) for part in cut]


class Recorder:
    """As `transform`: remembers the first word of every batch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, batch: Any, seed: int) -> Any:
        self.seen.append(int(batch[0]["input_word_ids"][0, 0]))
        return batch


def test_epochs_of_an_iterable_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    inputs, labels = data(20)
    inputs["input_word_ids"][:, 0] = np.arange(20)
    batches = batches_of(inputs, labels, 4)

    def fit(source: Any, recorder: Recorder, epochs: int, state: Path | None = None, **more: Any) -> Any:
        model = models.BertClassifier(small_encoder(), 2, seed=0)
        model.fit(
            source,
            optimizer=optimizers.AdamW(),
            epochs=epochs,
            steps_per_epoch=3,
            transform=recorder,
            state_path=state,
            progress=False,
            seed=0,
            **more,
        )
        return model

    whole = Recorder()
    model = fit(batches, whole, 4)
    assert whole.seen == [0, 4, 8, 12, 16, 0, 4, 8, 12, 16, 0, 4]

    def generator() -> Iterator[Any]:
        for _ in range(9):
            yield from batches

    once = Recorder()
    assert_same_weights(fit(generator(), once, 4), model)
    assert once.seen == whole.seen
    # A new iterator is read up to where the run was stopped.
    first, second = Recorder(), Recorder()
    fit(generator(), first, 4, tmp_path / "state.npz", callbacks=[StopAfter(5)])
    assert_same_weights(fit(generator(), second, 4, tmp_path / "state.npz"), model)
    assert first.seen + second.seen == whole.seen
    with pytest.raises(ValueError, match=r"data: an epoch has no batch \(epoch 3 of 4\)"):
        fit(iter(batches), Recorder(), 4)
    used = iter([*batches, *batches])
    trainer = training.Trainer(model, used, optimizer=optimizers.AdamW(), steps_per_epoch=3, epochs=2, seed=0)
    trainer.run()
    trainer.epoch = trainer.batch = 0
    with pytest.raises(ValueError, match="data: an iterator cannot go back from batch 6 to 0; pass a new one"):
        trainer.run()


def test_a_function_of_the_epoch_gives_its_batches() -> None:
    inputs, labels = data(12)
    model, recorder = models.BertClassifier(small_encoder(), 2, seed=0), Recorder()
    inputs["input_word_ids"][:, 0] = np.arange(12)
    batches = batches_of(inputs, labels, 4)
    arguments = {"optimizer": optimizers.SGD(), "epochs": 3, "transform": recorder, "progress": False}
    model.fit(lambda epoch: batches[epoch:], steps_per_epoch=2, **arguments)
    assert recorder.seen == [0, 4, 4, 8, 8]


def test_arguments_without_a_meaning_are_refused(tmp_path: Path) -> None:
    model = models.BertClassifier(small_encoder(), 2, seed=0)
    inputs, labels = data()
    batches = batches_of(inputs, labels, 8)
    optimizer = optimizers.AdamW()
    for source, arguments, kind, message in [
        (batches, {"drop_remainder": False}, ValueError, "drop_remainder: got False, but data are not arrays"),
        (data(), {"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        (data(), {"batch_size": 2.5}, TypeError, "batch_size: expected an integer"),
        (data(), {"steps_per_epoch": 2}, ValueError, "steps_per_epoch: got 2, but the arrays make 1 batches"),
        (batches, {"steps_per_epoch": 0}, ValueError, "steps_per_epoch: expected at least 1"),
        (data(), {"epochs": -1}, ValueError, "epochs: expected at least 0, got -1"),
        (data(), {"accumulation_steps": 1.5}, TypeError, "accumulation_steps: expected an integer"),
        (data(), {"accumulation_steps": 0}, ValueError, "accumulation_steps: expected at least 1"),
        (data(), {"save_every": 2}, ValueError, "save_every: needs state_path"),
        (data(), {"save_every": 0, "state_path": tmp_path / "x.npz"}, ValueError, "save_every: expected at least 1"),
        (data(), {"validation_data": iter(batches)}, TypeError, "validation_data: an iterator cannot start again"),
        (data(), {"validation_data": 3}, TypeError, "validation_data: expected arrays"),
    ]:
        with pytest.raises(kind, match=message):
            model.fit(source, optimizer=optimizer, progress=False, **arguments)
    for name, value in {"shuffle": True, "batch_size": 8}.items():
        with pytest.raises(ValueError, match=f"{name}: got {value}, but data are not arrays"):
            training.fit(model, batches, optimizer=optimizer, progress=False, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every: expected at least 1"):
        callbacks.JSONLLogger(tmp_path / "x", every=0)
    _, vjp = model.encoder.vjp(inputs)
    with pytest.raises(ValueError, match="encoder_outputs: got 4 of them, expected at most 3"):
        vjp({"encoder_outputs": [np.zeros((24, 8, WIDTH), np.float32)] * 4})
    model.trainable = False
    with pytest.raises(ValueError, match="model: there is nothing to train"):
        model.fit(data(), optimizer=optimizer, progress=False, seed=0)
    assert optimizer.iterations == 0


def test_sample_weights_may_be_none() -> None:
    inputs, labels = data()
    fitted = [models.BertClassifier(small_encoder(), 2, seed=0) for _ in range(2)]
    for model, given in zip(fitted, [(inputs, labels), (inputs, labels, None)], strict=True):
        model.fit(given, optimizer=optimizers.AdamW(), batch_size=8, validation_data=given, progress=False, seed=0)
    assert_same_weights(*fitted)


def test_gradients_of_inputs_are_passed_over() -> None:
    inputs = small_inputs()
    ids = inputs.pop("input_word_ids")
    inputs["input_word_embeddings"] = np.ones((*ids.shape, WIDTH), np.float32)
    encoders = [small_encoder(), small_encoder()]
    outputs, vjp = encoders[0].vjp(inputs)
    grads = vjp({"pooled_output": outputs["pooled_output"]})
    assert "input_word_embeddings" in dict(grads)
    optimizers.SGD(0.1).apply_gradients(encoders[0], grads)
    optimizers.SGD(0.1).apply_gradients(encoders[1], dict(grads))
    assert_same_weights(*encoders)


def test_masking_without_a_mask_leaves_padding_alone() -> None:
    inputs = small_inputs(20)
    inputs["input_word_ids"] = np.where(inputs["input_mask"] > 0, np.maximum(inputs["input_word_ids"], 5), 0)
    arguments: dict[str, Any] = {"seed": 1, "mask_id": 1, "vocab_size": VOCAB_SIZE, "special_ids": range(4)}
    with_mask = mask_tokens(inputs, max_predictions=3, rate=0.5, **arguments)
    without = mask_tokens(
        {name: value for name, value in inputs.items() if name != "input_mask"},
        max_predictions=3,
        rate=0.5,
        **arguments,
    )
    for name, values in without.items():
        np.testing.assert_array_equal(values, with_mask[name])


def test_an_embedding_layer_that_stays_is_warned_of() -> None:
    class Embedding:
        def __init__(self) -> None:
            self.trainable = True
            self.embeddings = np.random.default_rng(0).normal(size=(VOCAB_SIZE, WIDTH)).astype(np.float32)
            self.weights = [self.embeddings]

        def __call__(self, ids: Any) -> Any:
            return self.embeddings[ids]

    layer = Embedding()
    model = models.BertTokenClassifier(small_encoder(embedding_layer=layer), 2, seed=0)
    labels = data()[0]["input_word_ids"] % 2
    arguments: dict[str, Any] = {"optimizer": optimizers.SGD(), "progress": False}
    with pytest.warns(UserWarning, match="embedding_layer: the given Embedding is not trained"):
        model.fit((data()[0], labels), **arguments)
