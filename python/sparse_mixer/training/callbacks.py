"""What can happen besides updates during `fit`: stopping early, writing histories, progress."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy.typing as npt

from sparse_mixer._core.atomic_file import replacing
from sparse_mixer._core.checks import as_float, as_int, as_positive, as_text
from sparse_mixer._core.extras import require
from sparse_mixer._core.paths import PathLike, file_name


class Callback:
    """Base of callbacks; methods are called in the order of the list that `fit` got, and do nothing here.

    `trainer` is the `sparse_mixer.training.Trainer`; setting ``trainer.stop`` interrupts training after the step or
    epoch, ``trainer.finish()`` ends it for good.

    Attributes:
        on_every_rank: Whether every process of a run on several calls it, with the same logs, or only rank 0: so it is
            for what writes or prints.
    """

    on_every_rank = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def on_train_begin(self, trainer: Any) -> None:
        """Before the first step, also after a resumption."""

    def on_epoch_begin(self, trainer: Any) -> None:
        """Before the first step of each epoch, and before the next one after a resumption."""

    def on_step_begin(self, trainer: Any) -> None:
        """Before each update."""

    def on_validation_begin(self, trainer: Any) -> None:
        """Before the validation of an epoch."""

    def on_validation_step_begin(self, trainer: Any, number: int) -> None:
        """Before batch `number` of the validation, from 0; not in a run on several processes."""

    def on_validation_step_end(self, trainer: Any, number: int, logs: Mapping[str, float]) -> None:
        """After it; `logs` are means over the validation so far."""

    def on_validation_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """After it; `logs` are its metrics, without ``val_`` in front."""

    def on_step_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """After each update; `logs` are the step's metrics, ``learning_rate`` and, if known, ``gradient_norm``."""

    def on_step_skipped(self, trainer: Any) -> None:
        """In the place of `on_step_end` when no label of the step's batches has a weight, so that no update is made."""

    def on_epoch_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """After each epoch and its validation; `logs` are the epoch's means, ``val_...`` those of the validation.

        ``skipped_steps`` among them is the number of steps without an update.
        """

    def on_train_end(self, trainer: Any) -> None:
        """After the last step, also after an error or interrupt."""

    def get_state(self) -> dict[str, Any]:
        """What a resumed run must know, JSON-able."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state of `get_state`."""

    def get_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a resumed run must know besides, in arrays of numbers by name."""
        return {}

    def set_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over arrays of `get_arrays`."""


class EarlyStopping(Callback):
    """Ends training when a metric has not become better for `patience` epochs, as Keras's."""

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 0,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best_weights: bool = False,
    ) -> None:
        """Make one.

        Args:
            monitor: A name in the epochs' logs.
            patience: Epochs without improvement after which training ends; with 0 it ends after one, too.
            min_delta: Changes up to this do not count as improvement.
            mode: ``"min"``, ``"max"``, or ``"auto"``: larger is better for names that end in ``acc``, ``accuracy`` or
                ``auc``, smaller for all else.
            restore_best_weights: Go back to the weights of the best epoch when training is over.
        """
        if as_text("mode", mode) not in ("auto", "min", "max"):
            raise ValueError(f"mode: expected 'auto', 'min' or 'max', got {mode!r}")
        if not isinstance(monitor, str):
            raise TypeError(f"monitor: expected a string, got {monitor!r}")
        self.monitor = monitor
        self.patience = as_int("patience", patience)
        self.min_delta = abs(as_float("min_delta", min_delta))
        self.restore_best_weights = restore_best_weights
        self._sign = -1.0 if mode == "max" or (mode == "auto" and monitor.endswith(("acc", "accuracy", "auc"))) else 1.0
        self.best: float | None = None
        self.wait = 0
        self._best_weights: dict[str, npt.NDArray[Any]] = {}

    def on_train_begin(self, trainer: Any) -> None:
        """See `Callback`.

        Raises:
            ValueError: The metric is one of validation, and there is none.
        """
        if self.monitor.startswith("val_") and not trainer.validates:
            raise ValueError(f"monitor: {self.monitor!r} needs validation_data")
        if not trainer.batches_done:
            self.best, self.wait, self._best_weights = None, 0, {}

    def on_step_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`.

        Raises:
            ValueError: No metric has the name `monitor`.
        """
        if self.monitor.removeprefix("val_") not in trainer.epoch_metrics:
            raise ValueError(f"monitor: got {self.monitor!r}, expected one of {sorted(trainer.epoch_metrics)}")

    def on_epoch_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`."""
        # Missing after an epoch whose steps were all skipped.
        value = self._sign * logs.get(self.monitor, math.nan)
        best = math.inf if self.best is None else self._sign * self.best
        improved = value < best - self.min_delta
        if self.restore_best_weights and (improved or not self._best_weights):
            weights = trainer.model.get_weights()
            self._best_weights = {str(number): values for number, values in enumerate(weights)}
        if improved:
            self.best, self.wait = logs[self.monitor], 0
        else:
            self.wait += 1
            if self.wait >= self.patience and trainer.epoch:
                trainer.finish()

    def on_train_end(self, trainer: Any) -> None:
        """See `Callback`."""
        if self._best_weights and trainer.finished:
            trainer.model.set_weights(list(self._best_weights.values()))

    def __repr__(self) -> str:
        return f"<EarlyStopping monitor={self.monitor!r} patience={self.patience} best={self.best} wait={self.wait}>"

    def get_state(self) -> dict[str, Any]:
        """See `Callback`."""
        return {"best": self.best, "wait": self.wait}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self.best, self.wait = state["best"], state["wait"]

    def get_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """See `Callback`."""
        return {name: values.copy() for name, values in self._best_weights.items()}

    def set_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `Callback`."""
        self._best_weights = dict(arrays)


class JSONLLogger(Callback):
    """Appends one JSON object per step to a file, and one per validation; after a resumption, from where the state was.

    Those of a validation have no ``loss``, but ``val_loss`` and the like, besides ``step`` and ``epoch``. A skipped
    step has the line ``{"step": ..., "epoch": ..., "skipped_batch": ...}`` with the number of batches done by then.
    Numbers that are not finite, which JSON does not have, are null.
    """

    on_every_rank = False

    def __init__(self, path: PathLike, every: int = 1) -> None:
        """Make one.

        Args:
            path: The file.
            every: Steps per line.
        """
        self._path = Path(file_name(path))
        self._every = as_positive("every", every)
        self._file: TextIO | None = None

    def on_train_begin(self, trainer: Any) -> None:
        """See `Callback`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._entries_until(trainer) if trainer.step and self._path.exists() else []
        with replacing(self._path) as temporary:
            Path(temporary).write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = self._path.open("a")

    def on_step_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`."""
        if trainer.step % self._every == 0:
            self._write(trainer, logs)

    def on_epoch_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`."""
        validation = {name: value for name, value in logs.items() if name.startswith("val_")}
        if validation:
            self._write(trainer, validation)

    def on_step_skipped(self, trainer: Any) -> None:
        """See `Callback`."""
        self._write(trainer, {"skipped_batch": trainer.batches_done})

    def _write(self, trainer: Any, logs: Mapping[str, float]) -> None:
        if self._file is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in logs.items()}
            entry = {"step": trainer.step, "epoch": trainer.epoch, **finite}
            self._file.write(json.dumps(entry, allow_nan=False) + "\n")
            self._file.flush()

    def _entries_until(self, trainer: Any) -> list[dict[str, Any]]:
        """What the file has of the run so far; a line that was being written when the machine stopped ends it."""
        entries = []
        for line in self._path.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
                known = entry["step"] <= trainer.step and (
                    entry["skipped_batch"] <= trainer.batches_done
                    if "skipped_batch" in entry
                    else "loss" in entry or entry["epoch"] < trainer.epoch
                )
            except (ValueError, KeyError, TypeError):
                break
            if known:
                entries.append(entry)
        return entries

    def on_train_end(self, trainer: Any) -> None:
        """See `Callback`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no part in a run that is in progress: it opens the file when it gets one of its own.
        return dict(self.__dict__, _file=None)


class CSVLogger(Callback):
    """Writes the history, one line per epoch, after each epoch."""

    on_every_rank = False

    def __init__(self, path: PathLike) -> None:
        """Make one for the file `path`."""
        self._path = Path(file_name(path))

    def on_epoch_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`."""
        epochs = trainer.history.epochs
        names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(epochs)


class ProgressBar(Callback):
    """A tqdm bar per run with loss, tokens per second and the time left. Needs tqdm.

    For models with experts also the load of the busiest one over an even share.
    """

    on_every_rank = False

    def __init__(self) -> None:
        self._tqdm = require("tqdm.auto", "progress").tqdm
        self._bar: Any = None

    def on_train_begin(self, trainer: Any) -> None:
        """See `Callback`."""
        total = None if trainer.batches.steps is None else trainer.batches.steps * trainer.epochs
        self._bar = self._tqdm(total=total, initial=trainer.batches_done, unit="batch", dynamic_ncols=True)

    def on_step_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`."""
        self._bar.n = trainer.batches_done
        means = trainer.epoch_metrics.means()
        shown = {"loss": f"{means['loss']:.4f}", "tok/s": f"{trainer.tokens_per_second:,.0f}"}
        if "expert_load_peak" in means:
            shown["busiest expert"] = f"{means['expert_load_peak']:.2f}x"
        self._bar.set_description(f"epoch {trainer.epoch + 1}/{trainer.epochs}", refresh=False)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(0)

    def on_step_skipped(self, trainer: Any) -> None:
        """See `Callback`."""
        self._bar.n = trainer.batches_done
        self._bar.update(0)

    def on_epoch_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`."""
        text = ", ".join(f"{name} {value:.4f}" for name, value in logs.items() if worth_a_line(name))
        if logs.get("skipped_steps"):
            text += f", skipped steps {logs['skipped_steps']:.0f}"
        self._bar.write(f"epoch {trainer.epoch + 1}: {text}")

    def on_train_end(self, trainer: Any) -> None:
        """See `Callback`."""
        self._bar.close()

    def __getstate__(self) -> dict[str, Any]:
        # As `JSONLLogger` with its file.
        return dict(self.__dict__, _bar=None)


def worth_a_line(name: str) -> bool:
    """Whether a metric is one of those that are printed."""
    return name.endswith(("loss", "accuracy")) and "_z_" not in name and "balancing" not in name
