"""sentence-transformers on PyTorch."""

from __future__ import annotations

import os

import numpy as np

from benchmarks.sentence_tasks import BATCH, SentenceLoad, Task


class Peer:
    """The encoder in one storage type."""

    def __init__(self, load: SentenceLoad, threads: int, *, same_weights: bool = True, dtype: str) -> None:
        """Load the folder; nothing is downloaded."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from sentence_transformers import SentenceTransformer

        del same_weights
        torch.set_num_threads(threads)
        self._model = SentenceTransformer(
            str(load.model), device="cpu", local_files_only=True, model_kwargs={"dtype": getattr(torch, dtype)}
        ).eval()

    def __call__(self, task: Task) -> np.ndarray:
        """Return vectors [N, D]."""
        import torch

        if task.ids is None:
            return np.asarray(self._model.encode(list(task.texts), batch_size=BATCH, show_progress_bar=False))
        with torch.inference_mode():
            ids = torch.from_numpy(task.ids)
            features = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "token_type_ids": torch.zeros_like(ids),
            }
            return np.asarray(self._model(features)["sentence_embedding"].float().numpy())
