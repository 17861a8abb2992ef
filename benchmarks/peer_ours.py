"""`sparse_mixer` itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.bert_load import Bert
from benchmarks.workload import Workload, make_weights


def build_encoder(workload: Workload, threads: int, same_weights: bool, dtype: str) -> Any:
    """Return the encoder, with the weights that all peers share or those it draws itself; a BERT from its folder."""
    import sparse_mixer

    if isinstance(workload, Bert):
        return sparse_mixer.SparseMixer.load(workload.model, num_threads=threads, dtype=dtype)
    arguments = {**workload.constructor_arguments(), "num_threads": threads, "seed": 0}
    if not same_weights:
        return sparse_mixer.SparseMixer(**arguments, dtype=dtype)
    encoder = sparse_mixer.SparseMixer(**arguments)
    encoder.set_weights(make_weights([(w.name, tuple(w.shape)) for w in encoder.weights]))
    return encoder if dtype == "float32" else encoder.astype(dtype)


class Peer:
    """The encoder in one storage type, called with the outputs that every peer returns."""

    def __init__(self, workload: Workload, threads: int, *, same_weights: bool = True, dtype: str = "float32") -> None:
        """Build the encoder; set the weights that all peers share, or keep those it draws itself."""
        self._encoder = build_encoder(workload, threads, same_weights, dtype)

    def __call__(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return `sequence_output` and `pooled_output` as float32 arrays."""
        outputs = self._encoder(inputs, outputs=("sequence_output", "pooled_output"))
        return outputs["sequence_output"], outputs["pooled_output"]
