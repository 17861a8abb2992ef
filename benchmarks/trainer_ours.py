"""Training steps of `sparse_mixer`."""

from __future__ import annotations

import numpy as np

from benchmarks.peer_ours import build_encoder
from benchmarks.workload import LEARNING_RATE, Workload


class Peer:
    """One update per call: forward, backward, AdamW, on the mean square distance to a fixed target."""

    def __init__(
        self,
        workload: Workload,
        threads: int,
        *,
        same_weights: bool = True,
        dtype: str = "float32",
        recompute: bool = False,
    ) -> None:
        """Build encoder and optimiser; weights as in `peer_ours`."""
        from sparse_mixer.gradients import Gradients
        from sparse_mixer.optimizers import AdamW

        self._workload = workload
        self._encoder = build_encoder(workload, threads, same_weights, dtype)
        self._optimizer = AdamW(LEARNING_RATE)
        self._gradients = Gradients(self._encoder)
        self._recompute = recompute

    def __call__(self, inputs: dict[str, np.ndarray]) -> float:
        """Make one update; return the loss before it."""
        outputs, vjp = self._encoder.vjp(
            inputs,
            training=True,
            seed=self._optimizer.iterations,
            outputs=("sequence_output",),
            recompute=self._recompute,
        )
        difference = outputs["sequence_output"]
        difference -= self._workload.target()
        loss = float(np.vdot(difference, difference) / difference.size)
        difference *= np.float32(2 / difference.size)
        self._gradients.clear()
        vjp({"sequence_output": difference}, into=self._gradients)
        del vjp  # an update of weights that a call still holds would copy them
        self._optimizer.apply_gradients(self._encoder, self._gradients)
        return loss
