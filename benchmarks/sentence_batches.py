"""Texts as sorted, padded batches, for engines that take token ids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.sentence_tasks import BATCH, SentenceLoad, Task, read_tokenizer

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes token ids and mask, int64 [N, S], and returns vectors [N, D]."""


class Batches:
    """Calls an engine on tasks."""

    def __init__(self, load: SentenceLoad) -> None:
        """Read the tokenizer of the folder."""
        self._tokenizer = read_tokenizer(load.model, load.longest())

    def __call__(self, task: Task, run: Run) -> np.ndarray:
        """Return the vectors of a task in its order; texts are tokenised and sorted by their number of tokens."""
        if task.ids is not None:
            return run(task.ids, np.ones_like(task.ids))
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(task.texts))]
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]), reverse=True)
        parts = []
        for start in range(0, len(order), BATCH):
            batch = [tokens[place] for place in order[start : start + BATCH]]
            ids, mask = np.zeros((2, len(batch), len(batch[0])), np.int64)
            for row, one in enumerate(batch):
                ids[row, : len(one)] = one
                mask[row, : len(one)] = 1
            parts.append(run(ids, mask))
        vectors = np.empty((len(order), parts[0].shape[1]), np.float32)
        vectors[order] = np.concatenate(parts)
        return vectors
