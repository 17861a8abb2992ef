"""`sparse_mixer.embeddings.embed_shard`."""

from __future__ import annotations

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class FileLoad:
    """The folder of a model, and files."""

    model: pathlib.Path
    dtype: str

    def inputs(self, batch: tuple[pathlib.Path, pathlib.Path]) -> tuple[pathlib.Path, pathlib.Path]:
        """Return the source and the target of a call, which are all that it needs."""
        return batch


class Peer:
    """One process with all threads."""

    def __init__(self, load: FileLoad, threads: int, *, same_weights: bool = True) -> None:
        """Load the folder."""
        from sparse_mixer import TextEncoder

        del same_weights
        self._model = TextEncoder(load.model, num_threads=threads, dtype=load.dtype)

    def __call__(self, files: tuple[pathlib.Path, pathlib.Path]) -> int:
        """Encode the first file into the second; return how many texts it has."""
        from sparse_mixer.embeddings import embed_shard

        source, target = files
        return embed_shard(source, target, self._model, overwrite=True).rows
