"""`sparse_mixer` itself."""

from __future__ import annotations

import numpy as np

from benchmarks.workload import Workload, make_weights


class Peer:
    """The encoder in one storage type, called with the outputs that every peer returns."""

    def __init__(self, workload: Workload, threads: int, *, dtype: str = "float32", isa: str | None = None) -> None:
        """Build the encoder and set the seeded weights of the workload."""
        import sparse_mixer

        encoder = sparse_mixer.SparseMixer(**workload.constructor_arguments(), num_threads=threads, isa=isa)
        encoder.set_weights(make_weights([(w.name, tuple(w.shape)) for w in encoder.weights]))
        self._encoder = encoder if dtype == "float32" else encoder.astype(dtype)

    def __call__(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return `sequence_output` and `pooled_output` as float32 arrays."""
        outputs = self._encoder(inputs, outputs=("sequence_output", "pooled_output"))
        return outputs["sequence_output"], outputs["pooled_output"]
