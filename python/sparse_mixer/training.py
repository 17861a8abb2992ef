"""Training loops: `fit`, `evaluate`, and the `Trainer` behind them, which can be stopped and taken up again.

Everything random in a run (order of the examples, dropout, jitter, masking) is a function of its seed and of the number
of batches done. So a run that was stopped and resumed gives the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparse_mixer import _interrupts, _train_state
from sparse_mixer._batches import as_batches, derived_seed, token_count
from sparse_mixer._extras import require
from sparse_mixer._variables import Variable, assign_all
from sparse_mixer.callbacks import Callback, CSVLogger, EarlyStopping, JSONLLogger, ProgressBar
from sparse_mixer.gradients import Gradients
from sparse_mixer.models import Metrics, Model
from sparse_mixer.optimizers import Optimizer

__all__ = [
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "History",
    "JSONLLogger",
    "ProgressBar",
    "Trainer",
    "evaluate",
    "fit",
]


@dataclass
class History:
    """What happened in a run.

    Attributes:
        epochs: The logs of every epoch: means of the metrics, ``val_...`` those of the validation.
        steps: Loss and learning rate of every update.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)

    @property
    def history(self) -> dict[str, list[float]]:
        """The epochs' logs by metric, as in Keras; NaN where an epoch lacks one."""
        names = dict.fromkeys(name for epoch in self.epochs for name in epoch)
        return {name: [epoch.get(name, math.nan) for epoch in self.epochs] for name in names}

    def plot(self) -> Any:
        """Draw the loss of every step, and losses and accuracies of the epochs. Needs matplotlib.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        figure = require("matplotlib.figure", "plot").Figure(figsize=(10, 4), layout="constrained")
        by_metric = self.history
        accuracies = [name for name in by_metric if name.endswith("accuracy")]
        panels = figure.subplots(1, 2 if accuracies else 1, squeeze=False)[0]
        losses = [loss for loss, _ in self.steps]
        panels[0].plot(range(1, len(losses) + 1), losses, color="0.75", linewidth=0.8, label="loss of the step")
        ends = np.linspace(0, len(losses), len(self.epochs) + 1)[1:]
        for name in ("loss", "val_loss"):
            if name in by_metric:
                panels[0].plot(ends, by_metric[name], marker="o", label=name)
        panels[0].set(xlabel="update", ylabel="loss")
        panels[0].legend()
        for name in accuracies:
            panels[1].plot(range(1, len(self.epochs) + 1), by_metric[name], marker="o", label=name)
        if accuracies:
            panels[1].set(xlabel="epoch", ylabel="accuracy")
            panels[1].legend()
        return figure


class Trainer:
    """One run of training: `run` goes on from where it is, until the last epoch is over.

    Attributes:
        model: What is trained.
        optimizer: What trains it.
        epochs: Number of epochs of the run.
        epoch: Number of the epoch, from 0.
        batch: Batches of this epoch that have been used for updates.
        batches_done: The same over all epochs.
        epoch_metrics: Sums over the epoch so far.
        history: Epochs and steps so far.
        tokens_per_second: Moving average, without padding.
        stop: Set it to end the run after the step or epoch.
    """

    def __init__(
        self,
        model: Model,
        data: Any,
        *,
        optimizer: Optimizer,
        epochs: int = 1,
        batch_size: int = 32,
        steps_per_epoch: int | None = None,
        shuffle: bool = True,
        drop_remainder: bool = False,
        seed: int = 0,
        transform: Callable[[Any, int], Any] | None = None,
        accumulation_steps: int = 1,
        recompute: bool = False,
        validation_data: Any = None,
        callbacks: Sequence[Callback] = (),
        state_path: str | Path | None = None,
        save_every: int | None = None,
    ) -> None:
        """See `fit` for the arguments."""
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps: expected at least 1, got {accumulation_steps}")
        self.model = model
        self.optimizer = optimizer
        self.batches = as_batches(data, batch_size, shuffle, seed, drop_remainder)
        if steps_per_epoch is not None:
            self.batches.steps = min(steps_per_epoch, self.batches.steps or steps_per_epoch)
        self.epochs = epochs
        self.epoch = self.batch = self.batches_done = 0
        self.epoch_metrics = Metrics()
        self.history = History()
        self.tokens_per_second = 0.0
        self.stop = False
        self._batch_size = batch_size
        self._seed = seed
        self._transform = transform
        self._accumulation_steps = accumulation_steps
        self._recompute = recompute
        self._validation_data = validation_data
        self._callbacks = list(callbacks)
        self._state_path = None if state_path is None else Path(state_path)
        self._save_every = save_every
        self._gradients = Gradients(model)

    @property
    def step(self) -> int:
        """Number of updates done."""
        return self.optimizer.iterations

    def run(self) -> History:
        """Train until the last epoch is over or `stop` is set.

        Raises:
            KeyboardInterrupt: Interrupted, with model, optimiser and counters as after the last update; the state is
                saved if the run has a path for it. `run` may be called again.
            FloatingPointError: A loss is NaN or infinite; nothing has been updated with it.
        """
        self.stop = False
        for callback in self._callbacks:
            callback.on_train_begin(self)
        try:
            while self.epoch < self.epochs and not self.stop:
                self._run_epoch()
        except KeyboardInterrupt:
            if self._state_path is not None:
                self.save(self._state_path)
            raise
        finally:
            for callback in self._callbacks:
                callback.on_train_end(self)
        return self.history

    def _run_epoch(self) -> None:
        batches = self.batches.epoch(self.epoch, self.batch)
        while not self.stop:
            wanted = self._accumulation_steps
            if self.batches.steps is not None:
                wanted = min(wanted, self.batches.steps - self.batch)
            chunk = list(itertools.islice(batches, wanted))
            if not chunk:
                break
            self._update(chunk)
            if self._save_every and self.step % self._save_every == 0 and self._state_path is not None:
                self.save(self._state_path)
        else:
            return
        if not self.batch:
            raise ValueError("data: an epoch has no batch")
        logs = self.epoch_metrics.means()
        if self._validation_data is not None:
            results = evaluate(self.model, self._validation_data, batch_size=self._batch_size)
            logs |= {f"val_{name}": value for name, value in results.items()}
        with _interrupts.deferred():
            self.history.epochs.append(logs)
            for callback in self._callbacks:
                callback.on_epoch_end(self, logs)
            self.epoch, self.batch, self.epoch_metrics = self.epoch + 1, 0, Metrics()
        if self._state_path is not None:
            self.save(self._state_path)

    def _update(self, chunk: Sequence[Any]) -> None:
        """One update with the mean gradient of the batches in `chunk`."""
        start = time.perf_counter()
        metrics, tokens = Metrics(), 0
        self._gradients.clear()
        for number, batch in enumerate(chunk, self.batches_done):
            if self._transform is not None:
                batch = self._transform(batch, derived_seed(self._seed, number, 1))
            tokens += token_count(batch)
            seed = derived_seed(self._seed, number)
            new, _ = self.model.loss_and_gradients(batch, seed=seed, into=self._gradients, recompute=self._recompute)
            metrics.add(new)
        logs = metrics.means()
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(f"the loss of update {self.step + 1} is {logs['loss']}; nothing was updated")
        logs["learning_rate"] = self.optimizer.current_learning_rate()
        with _interrupts.deferred():
            # If Ctrl-C comes, this does not wait for the end of an update that has begun, which counts as made.
            norm = self.optimizer.apply_gradients(self.model, self._gradients, scale=1.0 / len(chunk))
            self.batch += len(chunk)
            self.batches_done += len(chunk)
            self.epoch_metrics.add(metrics)
            self.history.steps.append((logs["loss"], logs["learning_rate"]))
        if norm is not None:
            logs["gradient_norm"] = norm
        speed = tokens / (time.perf_counter() - start)
        self.tokens_per_second += (0.1 if self.tokens_per_second else 1.0) * (speed - self.tokens_per_second)
        for callback in self._callbacks:
            callback.on_step_end(self, logs)

    def save(self, path: str | Path) -> None:
        """Save weights, moments, counters, history and the callbacks' states, replacing `path` atomically."""
        iterations, moments = self.optimizer.get_state()
        meta = {
            "seed": self._seed,
            "iterations": iterations,
            "epoch": self.epoch,
            "batch": self.batch,
            "batches_done": self.batches_done,
            "epoch_metrics": self.epoch_metrics,
            "epochs": self.history.epochs,
            "callbacks": [[type(callback).__name__, callback.get_state()] for callback in self._callbacks],
        }
        variables = self._own_variables()
        weights = zip(variables, [variable.numpy() for variable in variables], strict=True)
        arrays = {f"weights/{variable.key}": values for variable, values in weights}
        arrays |= {f"moments/{name}": values for name, values in moments.items()}
        steps = np.array(self.history.steps, np.float64).reshape(-1, 2)
        _train_state.save(Path(path), meta, {**arrays, "history/steps": steps})

    def restore(self, path: str | Path) -> None:
        """Go on from what `save` wrote, for the same model, optimiser settings and callbacks.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is damaged or of another run; nothing has changed then.
        """
        meta, arrays = _train_state.load(Path(path))
        variables = self._own_variables()
        keys = [f"weights/{variable.key}" for variable in variables]
        found = {name for name in arrays if name.startswith("weights/")}
        if set(keys) != found:
            raise ValueError(f"{path}: saved for another model; differing weights: {sorted(found ^ set(keys))[:4]}")
        if meta["seed"] != self._seed:
            raise ValueError(f"{path}: saved by a run with seed {meta['seed']}, this one has {self._seed}")
        kinds = [type(callback).__name__ for callback in self._callbacks]
        states = {kind: state for kind, state in meta["callbacks"] if state}
        missing = sorted(set(states) - set(kinds))
        if missing:
            raise ValueError(f"{path}: saved by a run with callbacks that this one lacks: {missing}")
        moments = {
            name.removeprefix("moments/"): array for name, array in arrays.items() if name.startswith("moments/")
        }
        assign_all(variables, [arrays[key] for key in keys])
        self.optimizer.set_state(meta["iterations"], moments)
        self.epoch, self.batch, self.batches_done = meta["epoch"], meta["batch"], meta["batches_done"]
        self.epoch_metrics = Metrics({name: (total, weight) for name, (total, weight) in meta["epoch_metrics"].items()})
        self.history = History(meta["epochs"], [tuple(step) for step in arrays["history/steps"].tolist()])
        for callback, kind in zip(self._callbacks, kinds, strict=True):
            if kind in states:
                callback.set_state(states[kind])

    def _own_variables(self) -> list[Variable]:
        return [variable for variable in self.model.weights if isinstance(variable, Variable)]


def fit(
    model: Model,
    data: Any,
    *,
    optimizer: Optimizer,
    epochs: int = 1,
    batch_size: int = 32,
    steps_per_epoch: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = False,
    seed: int = 0,
    transform: Callable[[Any, int], Any] | None = None,
    accumulation_steps: int = 1,
    recompute: bool = False,
    validation_data: Any = None,
    callbacks: Sequence[Callback] = (),
    state_path: str | Path | None = None,
    save_every: int | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> History:
    """Train a model.

    Args:
        model: One of `sparse_mixer.models`.
        data: Arrays (a dict, ``(inputs, labels)`` or ``(inputs, labels, sample_weight)``), or an iterable of batches of
            the same forms that starts again every epoch, or a function from the epoch's number to one.
        optimizer: One of `sparse_mixer.optimizers`.
        epochs: Passes over the data.
        batch_size: Examples per batch, when `data` are arrays.
        steps_per_epoch: End an epoch after so many batches.
        shuffle: Whether each epoch of arrays has an order of its own.
        drop_remainder: Leave out a smaller last batch of arrays.
        seed: Source of order, dropout and jitter.
        transform: Called as ``transform(batch, seed)`` on every batch, with a seed of its own: for masking.
        accumulation_steps: Batches per update; their gradients are averaged.
        recompute: Compute blocks again in the backward pass: less memory, more time, the same bits.
        validation_data: What `evaluate` is given after each epoch.
        callbacks: See `sparse_mixer.callbacks`.
        state_path: Where the state is saved: after every epoch, every `save_every` updates, and on Ctrl-C.
        save_every: Updates between saves, besides those.
        resume: Go on from `state_path` if the file is there.
        progress: Show a progress bar; None shows one if tqdm is installed.

    Returns:
        The history.

    Raises:
        KeyboardInterrupt: Interrupted: the model is as after the last update, and the state saved.
        FloatingPointError: A loss is NaN or infinite.
    """
    bar = []
    if progress is not False:
        try:
            bar = [ProgressBar()]
        except ImportError:
            if progress:
                raise
    trainer = Trainer(
        model,
        data,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        shuffle=shuffle,
        drop_remainder=drop_remainder,
        seed=seed,
        transform=transform,
        accumulation_steps=accumulation_steps,
        recompute=recompute,
        validation_data=validation_data,
        callbacks=[*callbacks, *bar],
        state_path=state_path,
        save_every=save_every,
    )
    if resume and state_path is not None and Path(state_path).exists():
        trainer.restore(state_path)
    return trainer.run()


def evaluate(model: Model, data: Any, *, batch_size: int = 32) -> dict[str, float]:
    """Means of all metrics of `model` over `data`, as at inference.

    Args:
        model: One of `sparse_mixer.models`.
        data: As for `fit`.
        batch_size: Examples per batch, when `data` are arrays.
    """
    metrics = Metrics()
    for batch in as_batches(data, batch_size, False, 0).epoch(0, 0):
        metrics.add(model.test_step(batch))
    return metrics.means()
