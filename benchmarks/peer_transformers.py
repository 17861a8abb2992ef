"""A BERT in PyTorch, by the `transformers` package."""

from __future__ import annotations

import os

import numpy as np

from benchmarks.bert_load import Bert


class Peer:
    """`BertModel` in one storage type, with the attention that it chooses itself."""

    def __init__(self, workload: Bert, threads: int, *, same_weights: bool = True, dtype: str = "float32") -> None:
        """Load the folder; nothing is downloaded."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch

        del same_weights
        torch.set_num_threads(threads)
        self._model = workload.module(dtype=getattr(torch, dtype))

    def __call__(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return `sequence_output` and `pooled_output` as float32 arrays."""
        import torch

        ids, mask, types = (
            torch.from_numpy(inputs[name]).long() for name in ("input_word_ids", "input_mask", "input_type_ids")
        )
        with torch.inference_mode():
            outputs = self._model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        return outputs.last_hidden_state.float().numpy(), outputs.pooler_output.float().numpy()
