"""Texts as sorted, padded batches, for engines that take token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.sentence_tasks import BATCH, SentenceLoad, Task, read_tokenizer

Batch = dict[str, np.ndarray]
"""Token ids `input_ids` and mask `attention_mask`, int64 [N, S]."""


class Batches:
    """Calls an engine on tasks."""

    def __init__(self, load: SentenceLoad) -> None:
        """Read the tokenizer of the folder."""
        self._tokenizer = read_tokenizer(load.model, load.longest())

    def __call__(self, task: Task, run: Callable[[Sequence[Batch]], Sequence[np.ndarray]]) -> np.ndarray:
        """Return the vectors of a task in its order; texts are tokenised and sorted by their number of tokens.

        Args:
            task: tokens or texts.
            run: returns for each batch its vectors [N, D].
        """
        if task.ids is not None:
            (vectors,) = run([{"input_ids": task.ids, "attention_mask": np.ones_like(task.ids)}])
            return vectors
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(task.texts))]
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]), reverse=True)
        batches = []
        for start in range(0, len(order), BATCH):
            rows = [tokens[place] for place in order[start : start + BATCH]]
            ids, mask = np.zeros((2, len(rows), len(rows[0])), np.int64)
            for row, one in enumerate(rows):
                ids[row, : len(one)] = one
                mask[row, : len(one)] = 1
            batches.append({"input_ids": ids, "attention_mask": mask})
        found = np.concatenate(run(batches))
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors
