"""Lines of text about a run, for logs that no bar fits into."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from typing import Any

from sparse_mixer.training.callbacks import Callback, worth_a_line


class EpochLines(Callback):
    """Prints a line per epoch: its number, seconds, losses and accuracies."""

    on_every_rank = False

    def __init__(self) -> None:
        self._start = 0.0

    def on_epoch_begin(self, trainer: Any) -> None:
        """See `Callback`."""
        self._start = time.perf_counter()

    def on_epoch_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`."""
        seconds = time.perf_counter() - self._start
        values = "".join(f" - {name}: {value:.4f}" for name, value in logs.items() if worth_a_line(name))
        print(f"Epoch {trainer.epoch + 1}/{trainer.epochs} - {seconds:.0f}s{values}")  # noqa: T201


def has_progress_bar() -> bool:
    """Whether tqdm is installed, which progress bars need."""
    return importlib.util.find_spec("tqdm") is not None
