"""fastembed, on the exported encoder."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

import numpy as np

from benchmarks.exported_files import model_file
from benchmarks.sentence_tasks import BATCH, SentenceLoad, Task

_NAME = "benchmarks/sentences"
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Peer:
    """A model of one's own, read from a folder; it takes texts only."""

    def __init__(self, load: SentenceLoad, threads: int, *, same_weights: bool = True) -> None:
        """Register and load the model; nothing is downloaded."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        del same_weights
        self._folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self._folder.name)
        for name in _FILES:
            shutil.copy(load.model / name, folder / name)
        shutil.copy(model_file(load, "onnx-fused"), folder / "model.onnx")
        # Pooling and division by the length are in the exported model. Its source is never asked.
        TextEmbedding.add_custom_model(
            _NAME,
            PoolingType.DISABLED,
            normalization=False,
            sources=ModelSource(hf=_NAME),
            dim=load.vector_size(),
            model_file="model.onnx",
        )
        self._model = TextEmbedding(_NAME, threads=threads, specific_model_path=str(folder))

    def __call__(self, task: Task) -> np.ndarray:
        """Return vectors [N, D]. Texts go in sorted by their number of characters: fastembed keeps their order."""
        assert task.ids is None, "fastembed takes texts"
        order = sorted(range(len(task.texts)), key=lambda place: len(task.texts[place]), reverse=True)
        vectors = list(self._model.embed([task.texts[place] for place in order], batch_size=BATCH))
        result = np.empty((len(order), len(vectors[0])), np.float32)
        result[order] = vectors
        return result
