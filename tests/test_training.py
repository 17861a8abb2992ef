"""Optimisers, models and `fit` by themselves: learning, state, resumption, interrupts, errors."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import LENGTH, VOCAB_SIZE, WIDTH, small_encoder, small_inputs
from hypothesis import given
from hypothesis import strategies as st
from sparse_mixer import initializers, models, optimizers, schedules, training
from sparse_mixer.gradients import Gradients
from sparse_mixer.masking import mask_tokens
from sparse_mixer.training import callbacks

RULES = {
    "adamw": lambda: optimizers.AdamW(1e-3, global_clipnorm=1.0),
    "paper": lambda: optimizers.AdamW.paper(schedules.PaperSchedule(1e-3, 2, 100)),
    "lamb": lambda: optimizers.LAMB(1e-3),
    "sgd": lambda: optimizers.SGD(0.02, momentum=0.8, nesterov=True),
    "plain": lambda: optimizers.SGD(0.1),
    "adafactor": lambda: optimizers.Adafactor(1e-2),
}


def labelled(examples: int = 24, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Inputs whose label is told by the first word."""
    inputs = small_inputs(examples, seed)
    return inputs, (inputs["input_word_ids"][:, 0] >= VOCAB_SIZE // 2).astype(np.int64)


def masking(batch: dict[str, Any], seed: int) -> dict[str, Any]:
    return mask_tokens(batch, seed=seed, mask_id=1, vocab_size=VOCAB_SIZE, special_ids=range(4), max_predictions=3)


def assert_same_weights(one: Any, other: Any) -> None:
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_a_classifier_learns(rule: str) -> None:
    # Weights large enough that words tell apart what the pooler sees.
    encoder = small_encoder(initializer=initializers.TruncatedNormal(stddev=0.3))
    model = models.BertClassifier(encoder, 2, seed=0)
    before = model.evaluate(labelled())["loss"]
    history = model.fit(labelled(), optimizer=RULES[rule](), epochs=25, batch_size=8, progress=False, seed=0).history
    assert model.evaluate(labelled())["loss"] < 0.5 * before
    assert len(history["loss"]) == 25


def test_every_model_learns() -> None:
    inputs, labels = labelled(16)
    tokens = (inputs["input_word_ids"] % 3).astype(np.int64)
    spans = {"start_positions": labels * 2, "end_positions": labels * 2 + 1}
    heads = [models.ClassificationHead(WIDTH, 2)]
    cases: list[tuple[models.Model, Any, Any]] = [
        (models.BertClassifier(small_encoder(), 3, use_encoder_pooler=False, seed=0), (inputs, labels), None),
        (models.BertClassifier(small_encoder(), 1, seed=0), (inputs, labels.astype(np.float32)), None),
        (models.BertTokenClassifier(small_encoder(), 3, seed=0), (inputs, tokens), None),
        (models.BertSpanLabeler(small_encoder(), seed=0), (inputs, spans), None),
        (models.BertPretrainerV2(small_encoder(), seed=0), inputs, masking),
        (
            models.BertPretrainerV2(small_encoder(), "gelu", classification_heads=heads, seed=0),
            inputs | {"next_sentence_labels": labels},
            masking,
        ),
    ]
    for model, data, transform in cases:
        arguments = {"epochs": 15, "batch_size": 8, "transform": transform, "progress": False}
        history = model.fit(data, optimizer=optimizers.AdamW(3e-3), **arguments).history
        assert history["loss"][-1] < 0.97 * history["loss"][0], type(model).__name__
        assert np.isfinite(history["unscaled_router_z_loss"]).all()


def test_gradients_of_models_are_slopes() -> None:
    """A step against the gradient lowers the loss by the gradient's squared norm."""
    encoder = small_encoder(output_dropout=0.0, attention_dropout=0.0)
    inputs, labels = labelled(4)
    spans = {"start_positions": labels, "end_positions": labels + 2}
    heads = [models.ClassificationHead(WIDTH, 2)]
    batches: list[tuple[models.Model, Any]] = [
        (models.BertClassifier(encoder, 3, dropout_rate=0.0, seed=0), (inputs, labels, np.arange(4))),
        (models.BertClassifier(encoder, 3, use_encoder_pooler=False, dropout_rate=0.0, seed=0), (inputs, labels)),
        (models.BertClassifier(encoder, 1, dropout_rate=0.0, seed=0), (inputs, labels * 0.5)),
        (models.BertTokenClassifier(encoder, 4, dropout_rate=0.0, seed=0), (inputs, inputs["input_word_ids"] % 4 - 1)),
        (models.BertSpanLabeler(encoder, seed=0), (inputs, spans)),
        (
            models.BertPretrainerV2(encoder, "gelu", classification_heads=heads, seed=0),
            masking(inputs | {"next_sentence_labels": labels}, 5),
        ),
    ]
    for model, batch in batches:
        before = model.get_weights()
        _, gradients = model.loss_and_gradients(batch, seed=0)
        norm = gradients.global_norm()
        rate = 1e-3 / norm**2
        for key, own in zip([w.key for w in model.weights], model.weights, strict=True):
            own.assign(own.numpy() - rate * gradients[key])
        low = model.loss_and_gradients(batch, seed=0)[0].means()["loss"]
        model.set_weights([2 * old - new for old, new in zip(before, model.get_weights(), strict=True)])
        high = model.loss_and_gradients(batch, seed=0)[0].means()["loss"]
        model.set_weights(before)
        assert high - low == pytest.approx(2e-3, rel=0.03), type(model).__name__


def test_accumulated_batches_are_one_large_batch() -> None:
    inputs, labels = labelled(8)
    arguments = {"epochs": 1, "shuffle": False, "progress": False}
    changed = []
    for batch_size, steps in ((8, 1), (4, 2)):
        encoder = small_encoder(output_dropout=0.0, attention_dropout=0.0)
        model = models.BertClassifier(encoder, 2, dropout_rate=0.0, seed=0)
        sgd = optimizers.SGD(0.1)
        model.fit((inputs, labels), optimizer=sgd, batch_size=batch_size, accumulation_steps=steps, **arguments)
        assert sgd.iterations == 1
        changed.append(model.get_weights())
    for one, other in zip(*changed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_frozen_layers_stay() -> None:
    model = models.BertClassifier(small_encoder(), 2, seed=0)
    model.encoder.trainable = False
    model.encoder.layers[-1].trainable = True
    frozen = [variable for variable in model.encoder.weights if not variable.trainable]
    before = [variable.numpy() for variable in frozen]
    free = model.encoder.layers[-1].get_weights()
    optimizer = optimizers.AdamW(1e-2)
    model.fit(labelled(), optimizer=optimizer, epochs=1, progress=False, seed=0)
    for variable, values in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), values)
    assert not np.array_equal(free[0], model.encoder.layers[-1].get_weights()[0])
    moments = optimizer.get_state()[1]
    assert not any(name.startswith("transformer/") for name in moments)
    assert "sentence_prediction/logits/kernel/m" in moments


def test_apply_gradients_takes_mappings() -> None:
    one, other = small_encoder(), small_encoder()
    outputs, vjp = one.vjp(small_inputs(), seed=1)
    grads = vjp({name: np.ones_like(outputs[name]) for name in ("sequence_output", "pooled_output")})
    optimizers.AdamW(1e-2).apply_gradients(one, grads)
    optimizers.AdamW(1e-2).apply_gradients(other, {key: np.asarray(value) for key, value in grads.items()})
    assert_same_weights(one, other)
    before = one.get_weights()
    optimizers.SGD(1e-2).apply_gradients(one, {"pooler_transform/bias": np.ones(WIDTH, np.float32)})
    changed = [not np.array_equal(a, b) for a, b in zip(before, one.get_weights(), strict=True)]
    assert sum(changed) == 1


def test_weights_that_are_not_reached_stay() -> None:
    """Neither decay nor moments touch what nothing that was differentiated depends on."""
    inputs = small_inputs()
    ids = inputs.pop("input_word_ids")

    def changed(d_outputs: Any, given: Any, aux_loss_weight: float = 1.0) -> set[str]:
        encoder = small_encoder()
        before = {weight.key: weight.numpy() for weight in encoder.weights}
        _, vjp = encoder.vjp(inputs | given, seed=1)
        grads = vjp(d_outputs, aux_loss_weight)
        optimizer = optimizers.AdamW(1e-2, exclude_from_weight_decay=())
        optimizer.apply_gradients(encoder, grads)
        names = {weight.key for weight in encoder.weights if not np.array_equal(weight.numpy(), before[weight.key])}
        assert {name.rsplit("/", 1)[0] for name in optimizer.get_state()[1]} >= names
        grads.clear()
        before = {weight.key: weight.numpy() for weight in encoder.weights}
        optimizer.apply_gradients(encoder, grads)
        assert all(np.array_equal(weight.numpy(), before[weight.key]) for weight in encoder.weights)
        return names

    every = {weight.key for weight in small_encoder().weights}
    pooler = {key for key in every if key.startswith("pooler")}
    last = {key for key in every if key.startswith("transformer/layer_2/")}
    experts = {key for key in every if key.startswith("transformer/layer_1/")}
    words, embeddings = {"input_word_ids": ids}, {"input_word_embeddings": np.ones((*ids.shape, WIDTH), np.float32)}
    d_sequence = {"sequence_output": np.ones((*ids.shape, WIDTH), np.float32)}
    d_first = {"encoder_outputs": [d_sequence["sequence_output"]]}
    assert changed(d_sequence, words) == every - pooler
    assert changed(d_sequence | {"pooled_output": np.ones((len(ids), WIDTH))}, words) == every
    assert changed(d_sequence, embeddings) == every - pooler - {"word_embeddings/embeddings"}
    assert changed(d_first, words).isdisjoint(pooler | last)
    assert changed(d_first, words, 0.0) == every - pooler - last - experts
    assert changed({}, words, 0.0) == set()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", RULES)
def test_bits_do_not_depend_on_threads(rule: str, dtype: str) -> None:
    """With batches of 320 rows, which are more than one block of the core, and more than one of the moments."""
    inputs, labels = labelled(80)
    heads = [models.ClassificationHead(WIDTH, 2, dropout_rate=0.1, use_encoder_pooler=True)]
    results = []
    for threads in (1, 2, 3):
        encoder = small_encoder(num_threads=threads, dtype=dtype, jitter_noise=0.1)
        model = models.BertPretrainerV2(encoder, "gelu", classification_heads=heads, seed=0)
        optimizer = RULES[rule]()
        optimizer.global_clipnorm = 1.0
        history = model.fit(
            inputs | {"next_sentence_labels": labels},
            optimizer=optimizer,
            batch_size=40,
            epochs=2,
            transform=masking,
            progress=False,
            seed=0,
        )
        results.append((model, history, optimizer.get_state()[1]))
    (first, history, moments), *others = results
    for model, own, state in others:
        assert own == history
        assert_same_weights(model, first)
        assert state.keys() == moments.keys()
        for name, moment in state.items():
            np.testing.assert_array_equal(moment, moments[name])


def test_a_call_that_runs_during_an_update_keeps_its_weights() -> None:
    encoder = small_encoder()
    outputs, vjp = encoder.vjp(small_inputs(), seed=1, persistent=True)
    d_outputs = {"pooled_output": outputs["pooled_output"]}
    before = vjp(d_outputs)
    optimizers.SGD(1.0).apply_gradients(encoder, before)
    after = vjp(d_outputs)
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])


def test_errors_name_the_argument() -> None:
    encoder = small_encoder()
    model = models.BertClassifier(encoder, 2, seed=0)
    inputs, labels = labelled(4)
    optimizer = optimizers.AdamW()
    gradients = Gradients(encoder)
    for call, kind, message in [
        (lambda: optimizers.AdamW(beta_1=1.0), ValueError, "beta_1: got 1"),
        (lambda: optimizers.SGD(momentum=-0.5), ValueError, "momentum: got -0.5"),
        (lambda: optimizers.AdamW(epsilon_rule="x"), ValueError, "rule: "),
        (lambda: optimizers.AdamW(exclude_from_weight_decay="bias"), TypeError, "exclude_from_weight_decay: "),
        (lambda: schedules.PaperSchedule(1.0, 3, 3), ValueError, "total_steps: got 3"),
        (lambda: schedules.CosineDecay(1.0, 0), ValueError, "decay_steps: got 0"),
        (lambda: schedules.CosineDecay(1.0, 10.5), TypeError, "decay_steps: expected an integer, got 10.5"),
        (lambda: schedules.LinearWarmup(1.0, 2.5), TypeError, "warmup_steps: expected an integer"),
        (lambda: optimizers.LAMB(global_clipnorm=-1.0), ValueError, "global_clipnorm: expected a number above 0"),
        (lambda: optimizer.apply_gradients(encoder, {"x": 1}), ValueError, r"gradients: no weights are called \['x'\]"),
        (
            lambda: optimizer.apply_gradients(encoder, {"pooler_transform/bias": np.ones(3)}),
            ValueError,
            "pooler_transform/bias: got shape",
        ),
        (lambda: optimizer.apply_gradients(3, gradients), TypeError, "expected a SparseMixer or a model"),
        (
            lambda: optimizers.AdamW(-1.0).apply_gradients(encoder, gradients),
            ValueError,
            "learning_rate: expected at least 0, got -1",
        ),
        (lambda: model.loss_and_gradients((inputs, labels + 5), seed=0), ValueError, "labels: got "),
        (lambda: model.loss_and_gradients((inputs, labels[:2]), seed=0), ValueError, "labels: expected shape"),
        (lambda: model.loss_and_gradients(inputs, seed=0), ValueError, "labels: missing"),
        (lambda: model.loss_and_gradients(inputs, seed=0, into=gradients), ValueError, "labels: missing"),
        (lambda: model.loss_and_gradients((inputs, labels), seed=0, into=gradients), ValueError, "gradients: they"),
        (lambda: model.fit(iter([]), optimizer=optimizer, seed=0), TypeError, "data: an iterator cannot start again"),
        (lambda: model.fit([], optimizer=optimizer, progress=False, seed=0), ValueError, "data: an epoch has no batch"),
        (
            lambda: model.fit((inputs, labels[:2]), optimizer=optimizer, seed=0),
            ValueError,
            "data: expected arrays of one",
        ),
        (lambda: models.BertClassifier(encoder, 0, seed=0), ValueError, "num_classes: got 0"),
        (lambda: models.BertClassifier(encoder, 2, dropout_rate=1.0, seed=0), ValueError, "got 1, expected at least 0"),
        (
            lambda: models.BertPretrainerV2(encoder, seed=0)(inputs | {"masked_lm_positions": [[LENGTH]] * 4}),
            ValueError,
            "got",
        ),
    ]:
        with pytest.raises(kind, match=message):
            call()
    assert optimizer.iterations == 0


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    model = models.BertClassifier(small_encoder(), 1, seed=0)
    inputs, _ = labelled(4)
    before = model.get_weights()
    with pytest.raises(FloatingPointError, match="update 1 was not made: the loss is nan"):
        model.fit((inputs, np.full(4, np.nan)), optimizer=optimizers.AdamW(), progress=False, seed=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def make_run(
    rule: str, folder: Path, stopper: callbacks.Callback | None = None, dtype: str = "float32", epochs: int = 3
) -> training.Trainer:
    """A run with everything random: shuffling, dropout, jitter, masking, accumulation."""
    encoder = small_encoder(jitter_noise=0.1, dtype=dtype)
    model = models.BertPretrainerV2(
        encoder, "gelu", classification_heads=[models.ClassificationHead(WIDTH, 2, dropout_rate=0.1)], seed=0
    )
    inputs, labels = labelled(20)
    return training.Trainer(
        model,
        inputs | {"next_sentence_labels": labels},
        optimizer=RULES[rule](),
        epochs=epochs,
        batch_size=3,
        seed=5,
        transform=masking,
        accumulation_steps=2,
        validation_data=masking(inputs | {"next_sentence_labels": labels}, 0),
        callbacks=[callbacks.EarlyStopping(patience=9), *([stopper] if stopper else [])],
        state_path=folder / "state.npz",
    )


class StopAfter(callbacks.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        trainer.stop = trainer.step == self.step


@pytest.mark.parametrize(("rule", "dtype"), [("adamw", "float32"), ("adafactor", "float32"), ("lamb", "bfloat16")])
def test_stopped_runs_resume_with_the_same_bits(rule: str, dtype: str, tmp_path: Path) -> None:
    whole = make_run(rule, tmp_path / "whole", dtype=dtype)
    whole.run()
    steps = whole.step
    for stop in np.random.default_rng(0).choice(np.arange(1, steps), 5, replace=False):
        first = make_run(rule, tmp_path / str(stop), StopAfter(int(stop)), dtype)
        first.run()
        first.save(tmp_path / "stopped.npz")
        second = make_run(rule, tmp_path / str(stop), dtype=dtype)
        second.restore(tmp_path / "stopped.npz")
        assert second.step == stop
        history = second.run()
        assert history == whole.history
        assert_same_weights(second.model, whole.model)
        for name, moment in whole.optimizer.get_state()[1].items():
            np.testing.assert_array_equal(second.optimizer.get_state()[1][name], moment)


class SaveAfter(callbacks.Callback):
    def __init__(self, steps: Any, folder: Path) -> None:
        self.steps = {int(step) for step in steps}
        self.folder = folder

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        if trainer.step in self.steps:
            trainer.save(self.folder / f"stop-{trainer.step}.npz")


def digest(run: training.Trainer) -> str:
    """Of all losses, weights and moments."""
    arrays = [*run.model.get_weights(), *run.optimizer.get_state()[1].values()]
    return hashlib.sha256(repr(run.history).encode() + b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_twenty_random_stops_resume_in_a_new_process(tmp_path: Path) -> None:
    stops = np.random.default_rng(1).choice(np.arange(1, 32), 20, replace=False)
    whole = make_run("adamw", tmp_path / "whole", SaveAfter(stops, tmp_path), epochs=8)
    whole.run()
    assert whole.step == 32
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_training as t
for path in sorted(Path(sys.argv[1]).glob("stop-*.npz")):
    run = t.make_run("adamw", Path(sys.argv[1], path.stem), epochs=8)
    run.restore(path)
    run.run()
    print(t.digest(run))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], timeout=200, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [digest(whole)] * 20


def test_a_killed_process_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """The same in new processes, killed without warning; the state is saved after every update."""
    program = f"""
import os, sys, signal
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_training as t
class Kill(t.callbacks.Callback):
    def on_step_end(self, trainer, logs):
        if trainer.step == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
run = t.make_run("adamw", Path(sys.argv[1]), Kill())
run._save_every = 1
if Path(sys.argv[1], "state.npz").exists(): run.restore(Path(sys.argv[1], "state.npz"))
run.run()
"""
    whole = make_run("adamw", tmp_path / "whole")
    whole.run()
    for stop in (3, 7, -1):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path), str(stop)], timeout=120, check=False)
        assert done.returncode == (0 if stop < 0 else -signal.SIGKILL)
    resumed = make_run("adamw", tmp_path)
    resumed.restore(tmp_path / "state.npz")
    assert resumed.history == whole.history
    assert_same_weights(resumed.model, whole.model)


def test_ctrl_c_leaves_a_state_to_resume_from(tmp_path: Path) -> None:
    whole = make_run("adamw", tmp_path / "whole")
    whole.run()

    class Interrupt(callbacks.Callback):
        def on_step_end(self, trainer: Any, logs: Any) -> None:
            if trainer.step == 5:
                os.kill(os.getpid(), signal.SIGINT)

    run = make_run("adamw", tmp_path, Interrupt())
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.step == 5
    resumed = make_run("adamw", tmp_path)
    resumed.restore(tmp_path / "state.npz")
    assert_same_weights(resumed.model, run.model)
    assert resumed.run() == whole.history
    assert run.run() == whole.history, "the interrupted run itself goes on, too"
    assert_same_weights(run.model, whole.model)


def test_ctrl_c_during_an_update_waits_for_it() -> None:
    """A signal that comes while weights are changed is raised when counters agree with them again."""
    model = models.BertClassifier(small_encoder(), 2, seed=0)
    optimizer = optimizers.AdamW()
    apply = optimizer.apply_gradients

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return apply(*arguments, **keywords)

    optimizer.apply_gradients = interrupted  # type: ignore[method-assign]
    trainer = training.Trainer(model, labelled(), optimizer=optimizer, batch_size=8, seed=0)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert (trainer.step, trainer.batch, len(trainer.history.steps)) == (1, 1, 1)


def test_states_of_other_runs_are_refused(tmp_path: Path) -> None:
    run = make_run("adamw", tmp_path, StopAfter(2))
    run.run()
    path = tmp_path / "state.npz"
    run.save(path)
    other = training.Trainer(
        models.BertClassifier(small_encoder(), 2, seed=0), labelled(), optimizer=optimizers.AdamW(), seed=0
    )
    with pytest.raises(ValueError, match="saved for another model"):
        other.restore(path)
    whole = path.read_bytes()
    for damaged in (whole[:1000], b"", b"PK" + whole[2:5000], bytes(len(whole))):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged, or not a training state"):
            run.restore(path)
    with pytest.raises(FileNotFoundError):
        run.restore(tmp_path / "missing.npz")


def test_early_stopping_goes_back_to_the_best_weights() -> None:
    seen: list[Any] = []

    class Record(callbacks.Callback):
        def on_epoch_end(self, trainer: Any, logs: Any) -> None:
            seen.append((logs["val_loss"], trainer.model.get_weights()))

    model = models.BertClassifier(small_encoder(), 2, seed=0)
    stopping = callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    data, other = labelled(), (labelled()[0], 1 - labelled()[1])
    optimizer = optimizers.AdamW(1e-2)
    history = model.fit(
        data,
        optimizer=optimizer,
        epochs=50,
        validation_data=other,
        callbacks=[Record(), stopping],
        progress=False,
        seed=0,
    )
    assert len(history.epochs) < 50
    best = min(seen, key=lambda entry: entry[0])
    assert stopping.best == best[0]
    for a, b in zip(model.get_weights(), best[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_histories_are_written(tmp_path: Path) -> None:
    model = models.BertClassifier(small_encoder(), 2, seed=0)
    steps, epochs = callbacks.JSONLLogger(tmp_path / "steps.jsonl"), callbacks.CSVLogger(tmp_path / "epochs.csv")
    schedule = schedules.LinearWarmup(schedules.PolynomialDecay(1e-3, 6, 0.0), 2)
    optimizer = optimizers.AdamW(schedule, global_clipnorm=1.0)
    history = model.fit(labelled(), optimizer=optimizer, epochs=2, batch_size=8, callbacks=[steps, epochs], seed=0)
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["learning_rate"] for line in lines] == pytest.approx([schedule(step) for step in range(6)])
    assert all(line["gradient_norm"] > 0 for line in lines)
    for entry in (*lines, *history.epochs):
        loads = [entry[f"expert_load/1/{expert}"] for expert in range(4)]
        assert sum(loads) == pytest.approx(1.0, abs=1e-5)
        assert entry["expert_load_peak"] >= 4 * max(loads) - 1e-5
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 3
    figure = history.plot()
    drawn = {axes.get_ylabel().split()[0]: [line.get_ydata() for line in axes.lines] for axes in figure.axes}
    assert list(drawn) == ["loss", "accuracy", "share", "learning", "busiest"]
    np.testing.assert_array_equal(drawn["learning"][0], [rate for _, rate in history.steps])
    np.testing.assert_array_equal(drawn["busiest"][0], history.history["expert_load_peak"])
    np.testing.assert_array_equal(drawn["share"][0], history.history["router_confidence"])
    figure.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


@given(seed=st.integers(0, 2**32), examples=st.integers(1, 5), predictions=st.integers(1, 9), rate=st.floats(0, 1))
def test_masking(seed: int, examples: int, predictions: int, rate: float) -> None:
    inputs = small_inputs(examples, seed)
    ids = inputs["input_word_ids"].copy()
    special = range(4)
    masked = mask_tokens(
        inputs,
        seed=seed,
        mask_id=1,
        vocab_size=VOCAB_SIZE,
        special_ids=special,
        max_predictions=predictions,
        rate=rate,
    )
    np.testing.assert_array_equal(inputs["input_word_ids"], ids)
    for row in range(examples):
        used = masked["masked_lm_weights"][row] > 0
        positions = masked["masked_lm_positions"][row]
        choosable = ~np.isin(ids[row], special) & (inputs["input_mask"][row] > 0)
        wanted = min(predictions, max(1, int(rate * inputs["input_mask"][row].sum())))
        assert used.sum() == min(wanted, choosable.sum())
        assert (np.diff(positions[used]) > 0).all()
        assert choosable[positions[used]].all()
        np.testing.assert_array_equal(masked["masked_lm_ids"][row][used], ids[row][positions[used]])
        changed = np.flatnonzero(masked["input_word_ids"][row] != ids[row])
        assert set(changed) <= set(positions[used])
        new = masked["input_word_ids"][row][changed]
        assert ((new == 1) | ~np.isin(new, special)).all()
        assert not masked["masked_lm_ids"][row][~used].any()


def test_shares_of_masking() -> None:
    inputs = {"input_word_ids": np.full((400, 100), 10, np.int32), "input_mask": np.ones((400, 100), np.int32)}
    masked = mask_tokens(inputs, seed=0, mask_id=3, vocab_size=1000, special_ids=range(5), max_predictions=80)
    chosen = masked["masked_lm_weights"].sum()
    assert chosen == 400 * 15
    new = np.take_along_axis(masked["input_word_ids"], masked["masked_lm_positions"], 1)[:, :15]
    assert np.mean(new == 3) == pytest.approx(0.8, abs=0.02)
    assert np.mean(new == 10) == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match="rate: expected 0 to 1, got 2"):
        mask_tokens(inputs, seed=0, mask_id=3, vocab_size=9, special_ids=[], max_predictions=1, rate=2)
