"""What a run of training saves, and how it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparse_mixer import _native
from sparse_mixer._core import interrupts
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer._core.variables import Variable, assign_all, by_owner
from sparse_mixer.optimizers import Optimizer
from sparse_mixer.training import fingerprint
from sparse_mixer.training import state as state_files
from sparse_mixer.training.batches import Batches
from sparse_mixer.training.callbacks import Callback
from sparse_mixer.training.history import History
from sparse_mixer.training.metrics import Metrics
from sparse_mixer.training.trainable import Trainable


class Resumable:
    """The part of `sparse_mixer.training.Trainer` that saves and resumes; attributes as described there."""

    model: Trainable
    optimizer: Optimizer
    batches: Batches
    epoch: int
    batch: int
    batches_done: int
    epoch_metrics: Metrics
    history: History
    skipped_steps: int
    _callbacks: list[Callback]
    _is_seeded: bool
    _seed: int
    _updates_before_epoch: int
    _finished: bool
    # What a resumption must have in common with the run that was saved, and of that what is computed when it is needed.
    _settings: dict[str, Any]
    _digests: dict[str, Any] | None

    def save(self, path: PathLike) -> None:
        """Save weights, moments, counters, history and the callbacks' states, replacing `path` atomically.

        Weights and moments are those of one moment, and are not copied.
        """
        core = self.optimizer.core
        variables = self._own_variables()
        parts = [
            (owner, [(variable.index, f"weights/{variable.key}") for variable in owned])
            for owner, owned in by_owner(variables).items()
        ]
        snapshot = _native.TrainingSnapshot(parts, core)
        iterations, moments = self.optimizer.get_state() if core is None else (snapshot.iterations, {})
        arrays = {f"moments/{name}": values for name, values in moments.items()}
        meta = {
            "run": self._fingerprint(),
            "finished": self._finished,
            "iterations": iterations,
            "moments": list(moments) or snapshot.moments,
            "epoch": self.epoch,
            "batch": self.batch,
            "batches_done": self.batches_done,
            "skipped_steps": self.skipped_steps,
            "updates_before_epoch": self._updates_before_epoch,
            "epoch_metrics": self.epoch_metrics,
            "epochs": self.history.epochs,
            "callbacks": {name: callback.get_state() for name, callback in self._named_callbacks().items()},
        }
        for name, callback in self._named_callbacks().items():
            arrays |= {f"callbacks/{name}/{key}": values for key, values in callback.get_arrays().items()}
        steps = np.array(self.history.steps, np.float64).reshape(-1, 2)
        state_files.save(Path(file_name(path)), meta, {**arrays, "history/steps": steps}, snapshot)

    def restore(self, path: PathLike) -> None:
        """Resume from what `save` wrote, for the same model, data, optimiser, schedule and callbacks.

        Only the number of epochs may be another one.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is damaged or of another run; nothing has changed then.
        """
        name = file_name(path)
        state = self._read_state(name)
        self._check_same_run(name, state)
        variables = self._own_variables()
        try:
            take_moments = self.optimizer.staged_state(state.iterations, state.moments, self.model)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; {state_files.REMEDY}") from error
        with interrupts.deferred():
            self._restore_callbacks(name, state)
            assign_all(variables, [state.weights[variable.key] for variable in variables])
            # Nothing below can fail.
            take_moments()
            self._finished = state.finished
            self._seed = self._settings["seed"] = state.run["seed"]
            counters = state.counters
            self.epoch, self.batch, self.batches_done = counters["epoch"], counters["batch"], counters["batches_done"]
            self.skipped_steps = counters["skipped_steps"]
            self._updates_before_epoch = counters["updates_before_epoch"]
            self.epoch_metrics, self.history = state.epoch_metrics, state.history

    def has_state(self, path: str) -> bool:
        """Whether there is a file to resume from."""
        return Path(path).exists()

    def _read_state(self, path: str) -> state_files.State:
        return state_files.read(Path(path))

    def _restore_callbacks(self, path: str, state: state_files.State) -> None:
        """Give all callbacks their states, or on an error back those that they had."""
        done: list[tuple[Callback, dict[str, Any], dict[str, Any]]] = []
        try:
            for name, callback in self._named_callbacks().items():
                own, arrays = state.callbacks.get(name, ({}, {}))
                done.append((callback, callback.get_state(), callback.get_arrays()))
                if own:
                    callback.set_state(own)
                callback.set_arrays(arrays)
        except Exception as error:
            for callback, before, arrays in done:
                callback.set_state(before)
                callback.set_arrays(arrays)
            raise ValueError(
                f"{path}: damaged: a callback refuses its state: {error!r}; {state_files.REMEDY}"
            ) from error

    def _fingerprint(self) -> dict[str, Any]:
        """What a resumption must have in common with this run, as a file holds it."""
        if self._digests is None:
            self._digests = fingerprint.of_arrays(self.batches.data)
        return {**self._settings, **self._digests}

    def _check_same_run(self, path: str, state: state_files.State) -> None:
        shapes = {variable.key: variable.shape for variable in self._own_variables()}
        found = {key: values.shape for key, values in state.weights.items()}
        if shapes != found:
            differing = sorted(key for key in shapes | found if shapes.get(key) != found.get(key))
            message = f"saved for another model; differing weights: {differing[:4]}"
            raise ValueError(f"{path}: {message}; {state_files.REMEDY}")
        differences = fingerprint.differences(state.run, self._fingerprint(), () if self._is_seeded else ("seed",))
        if differences:
            raise ValueError(f"{path}: saved by a run with {differences}; {state_files.REMEDY}")
        missing = sorted({name for name, (own, _) in state.callbacks.items() if own} - set(self._named_callbacks()))
        if missing:
            message = f"saved by a run with callbacks that this one lacks: {missing}"
            raise ValueError(f"{path}: {message}; {state_files.REMEDY}")

    def _named_callbacks(self) -> dict[str, Callback]:
        """The callbacks by class, from the second of a class on with a number."""
        named: dict[str, Callback] = {}
        for callback in self._callbacks:
            kind = type(callback).__name__
            number = sum(type(other).__name__ == kind for other in named.values())
            named[f"{kind}-{number + 1}" if number else kind] = callback
        return named

    def _own_variables(self) -> list[Variable]:
        return [variable for variable in self.model.weights if isinstance(variable, Variable)]
