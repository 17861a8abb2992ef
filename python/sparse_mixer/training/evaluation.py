"""Metrics of a model over data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from sparse_mixer._core.checks import as_positive
from sparse_mixer.training.batches import are_arrays, as_batches
from sparse_mixer.training.metrics import Metrics
from sparse_mixer.training.trainable import Trainable


def evaluate(
    model: Trainable, data: Any, *, batch_size: int | None = None, steps: int | None = None
) -> dict[str, float]:
    """Means of all metrics of `model` over `data`, as at inference.

    Args:
        model: One of `sparse_mixer.models`.
        data: As for `fit`.
        batch_size: Examples per batch, when `data` are arrays; 32 unless given.
        steps: The most batches to evaluate; None for all.
    """
    pairs = getattr(model, "_labels_are_pairs", False)
    shuffle = False if are_arrays(data) else None
    count = None if steps is None else as_positive("steps", steps)
    if isinstance(data, Iterator) and count is not None:
        # Read once: it need not start again.
        data = list(itertools.islice(data, count))
    metrics = Metrics()
    for batch in itertools.islice(as_batches(data, batch_size, shuffle, pairs=pairs).epoch(0, 0, seed=0), count):
        metrics.add(model.test_step(batch))
    return metrics.means()
