"""`sparse_mixer.TextEncoder`."""

from __future__ import annotations

import numpy as np

from benchmarks.sentence_tasks import BATCH, SentenceLoad, Task


class Peer:
    """The encoder in one storage type."""

    def __init__(self, load: SentenceLoad, threads: int, *, same_weights: bool = True, dtype: str) -> None:
        """Load the folder."""
        from sparse_mixer import TextEncoder

        del same_weights
        self._model = TextEncoder(load.model, dtype=dtype, num_threads=threads)

    def __call__(self, task: Task) -> np.ndarray:
        """Return vectors [N, D]."""
        from sparse_mixer.text.tokens import Tokens

        if task.ids is None:
            return np.asarray(self._model.encode(list(task.texts), batch_size=BATCH, on_truncation="ignore"))
        types = [0] * task.ids.shape[1]
        return self._model.encode_tokens([Tokens(row, types, 0) for row in task.ids.tolist()], len(task.ids))
