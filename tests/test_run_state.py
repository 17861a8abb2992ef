"""States of runs: what makes a run is compared, and a restoration that fails changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from sparse_mixer import models, optimizers, schedules, training
from sparse_mixer.models import compiled

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "seed": 3, "progress": False}


def data() -> tuple[dict[str, Any], Any]:
    inputs = small_inputs(8)
    return inputs, inputs["input_word_ids"][:, 0] % 2


def fit(path: Path, model: Any = None, given: Any = None, optimizer: Any = None, **changes: Any) -> Any:
    model = models.BertClassifier(small_encoder(), 2, seed=0) if model is None else model
    optimizer = optimizers.AdamW(1e-3) if optimizer is None else optimizer
    history = model.fit(given or data(), optimizer=optimizer, state_path=path, **{**SETTINGS, **changes})
    return model, optimizer, history


def changed(array: Any) -> Any:
    array = np.array(array)
    array.flat[5] = (array.flat[5] + 1) % 2
    return array


def schedule(steps: int) -> schedules.LearningRateSchedule:
    return schedules.LinearWarmup(schedules.PolynomialDecay(1e-3, steps), 2)


def transform(batch: Any, seed: int) -> Any:
    return batch


DIFFERENT: dict[str, tuple[str, dict[str, Any]]] = {
    "labels": ("other labels", {"given": (data()[0], changed(data()[1]))}),
    "inputs": ("other inputs", {"given": (data()[0] | {"input_mask": changed(data()[0]["input_mask"])}, data()[1])}),
    "weights": ("other sample_weight", {"given": (*data(), np.arange(8.0))}),
    "rate": ("optimizer learning_rate 0.001, this one has 0.002", {"optimizer": optimizers.AdamW(2e-3)}),
    "decay": ("optimizer weight_decay 0.004, this one has 0.1", {"optimizer": optimizers.AdamW(1e-3, 0.1)}),
    "beta": ("optimizer beta_1 0.9, this one has 0.8", {"optimizer": optimizers.AdamW(1e-3, beta_1=0.8)}),
    "clipping": ("optimizer global_clipnorm None, this", {"optimizer": optimizers.AdamW(1e-3, global_clipnorm=1.0)}),
    "no decay": ("exclude_from_weight_decay", {"optimizer": optimizers.AdamW(1e-3, exclude_from_weight_decay=())}),
    "rule": ("optimizer 'adamw', this one has 'lamb'", {"optimizer": optimizers.LAMB(1e-3)}),
    "schedule": ("optimizer learning_rate 0.001, this one has {", {"optimizer": optimizers.AdamW(schedule(9))}),
    "model": ("model dropout_rate 0.1, this one has 0.2", {"model": lambda: classifier(dropout_rate=0.2)}),
    "encoder": ("encoder output_dropout 0.1, this one has 0.3", {"model": lambda: classifier(output_dropout=0.3)}),
    "frozen": ("frozen weights", {"model": lambda: frozen(classifier())}),
    "transform": ("transform None, this one has 'transform'", {"transform": transform}),
    "seed": ("seed 3, this one has 4", {"seed": 4}),
    "size": ("batch_size 4, this one has 2", {"batch_size": 2}),
}


def classifier(dropout_rate: float = 0.1, **changes: Any) -> models.Model:
    return models.BertClassifier(small_encoder(**changes), 2, dropout_rate=dropout_rate, seed=0)


def frozen(model: models.Model) -> models.Model:
    model.encoder.layers[0].trainable = False
    return model


@pytest.mark.parametrize("epochs", [2, 3], ids=["finished", "not finished"])
@pytest.mark.parametrize("kind", DIFFERENT)
def test_another_run_is_refused_by_name(kind: str, epochs: int, tmp_path: Path) -> None:
    message, changes = DIFFERENT[kind]
    path = tmp_path / "state.npz"
    fit(path)
    before = path.read_bytes()
    given = {name: value() if name == "model" else value for name, value in changes.items()}
    with pytest.raises(ValueError, match="saved by a run with") as info:
        fit(path, **given, epochs=epochs)
    assert message in str(info.value)
    assert "pass resume=False to start over, or another state_path" in str(info.value)
    assert path.read_bytes() == before
    fit(tmp_path / "other.npz", **{**given, "resume": True})


def test_the_same_run_in_other_arrays_goes_on(tmp_path: Path) -> None:
    """Types and objects may be others, values not."""
    inputs, labels = data()
    path = tmp_path / "state.npz"
    fit(path, optimizer=optimizers.AdamW(schedule(9)))
    given = ({name: array.astype(np.int64) for name, array in inputs.items()}, labels.tolist())
    model, optimizer, history = fit(path, given=given, optimizer=optimizers.AdamW(schedule(9)), epochs=3)
    straight, _, expected = fit(tmp_path / "x.npz", optimizer=optimizers.AdamW(schedule(9)), epochs=3)
    assert history == expected
    assert optimizer.iterations == 6
    for one, other in zip(model.get_weights(), straight.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_in_a_list_are_compared(tmp_path: Path) -> None:
    inputs, labels = data()
    batches = [({name: a[part] for name, a in inputs.items()}, labels[part]) for part in (slice(0, 4), slice(4, 8))]
    path = tmp_path / "state.npz"
    fit(path, given=batches, batch_size=None)
    with pytest.raises(ValueError, match="saved by a run with other batches"):
        fit(path, given=batches[::-1], batch_size=None)


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    model, optimizer, history = fit(path)
    with pytest.warns(UserWarning, match=r"this run is finished after 2 epochs: nothing is trained") as warned:
        again, its_optimizer, same = fit(path)
    assert warned[0].filename in (__file__, compiled.__file__)
    assert same == history
    assert its_optimizer.iterations == optimizer.iterations == 4
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


class Stubborn(training.Callback):
    """Has a state; refuses one that is not its own."""

    def __init__(self) -> None:
        self.seen = 0

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        self.seen += 1

    def get_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def set_state(self, state: Any) -> None:
        self.seen = state["seen"]


def make(fresh: bool) -> training.Trainer:
    optimizer = optimizers.AdamW(1e-2, global_clipnorm=1.0)
    stopping = training.EarlyStopping("loss", patience=5, restore_best_weights=True)
    run = training.Trainer(
        classifier(), data(), optimizer=optimizer, epochs=3, batch_size=4, seed=3, callbacks=[stopping, Stubborn()]
    )
    if not fresh:
        run.run()
    return run


def bits(run: training.Trainer) -> list[Any]:
    iterations, moments = run.optimizer.get_state()
    callbacks = [(callback.get_state(), callback.get_arrays()) for callback in run._callbacks]
    counters = (run.epoch, run.batch, run.batches_done, run.step, run._seed, run.finished, iterations)
    return [run.model.get_weights(), moments, callbacks, counters, run.history.epochs, run.history.steps]


def damaged(arrays: dict[str, Any], meta: dict[str, Any], how: str) -> None:
    """Change a state as bad disks, other versions and hands do."""
    kind, _, name = how.partition(" ")
    if kind == "without":
        if name in meta:
            del meta[name]
        else:
            del arrays[name]
    elif kind == "text":
        meta[name] = "x"
    elif kind == "null":
        meta[name] = None
    elif kind == "callback":
        meta["callbacks"][name] = {"unknown": 1}
    elif kind == "shape":
        arrays[name] = arrays[name][..., :-1]
    elif kind == "type":
        arrays[name] = np.full(arrays[name].shape, "a")


_META = (
    "run",
    "finished",
    "iterations",
    "moments",
    "epoch",
    "batch",
    "batches_done",
    "epoch_metrics",
    "epochs",
    "callbacks",
)
_MORE = ("epoch_metrics", "epochs", "callbacks", "skipped_steps", "updates_before_epoch")
_WEIGHT, _MOMENT = "weights/sentence_prediction/logits/kernel", "moments/sentence_prediction/logits/kernel/m"
DAMAGES = [
    *(f"{kind} {name}" for kind in ("without", "text", "null") for name in (*_META, *_MORE)),
    *(f"{kind} {name}" for kind in ("without", "shape", "type") for name in (_WEIGHT, _MOMENT, "history/steps")),
    "callback EarlyStopping",
    "callback Stubborn",
]


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_state_changes_nothing(how: str, fresh: bool, tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    make(fresh=False).save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(arrays.pop("meta.json").tobytes())
    damaged(arrays, meta, how)
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    with open(path, "wb") as stream:
        np.savez(stream, **{"meta.json": text, **arrays})
    run = make(fresh)
    before = bits(run)
    with pytest.raises(ValueError, match=r"state\.npz: .*pass resume=False"):
        run.restore(path)
    after = bits(run)
    for one, other in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert before[1].keys() == after[1].keys()
    for name in before[1]:
        np.testing.assert_array_equal(before[1][name], after[1][name])
    for (state, kept), (its_state, its_kept) in zip(before[2], after[2], strict=True):
        assert state == its_state
        assert kept.keys() == its_kept.keys()
        for name in kept:
            np.testing.assert_array_equal(kept[name], its_kept[name])
    assert before[3:] == after[3:]
