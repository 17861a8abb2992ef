"""Training steps of our module of PyTorch, with PyTorch's optimiser."""

from __future__ import annotations

import numpy as np

from benchmarks.peer_torch import build_module
from benchmarks.workload import LEARNING_RATE, Workload


class Peer:
    """The same update as `trainer_ours.Peer`: forward, backward, AdamW."""

    def __init__(self, workload: Workload, threads: int, *, same_weights: bool = True) -> None:
        """Build module and optimiser."""
        import torch

        self._module = build_module(workload, threads, same_weights)
        self._optimizer = torch.optim.AdamW(self._module.parameters(), LEARNING_RATE, fused=True)
        self._target = torch.from_numpy(workload.target())

    def __call__(self, inputs: dict[str, np.ndarray]) -> float:
        """Make one update; return the loss before it."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        outputs = self._module(tensors, outputs=("sequence_output",))
        sequence = outputs["sequence_output"]
        loss = torch.nn.functional.mse_loss(sequence, self._target.expand_as(sequence))
        self._optimizer.zero_grad()
        (loss + outputs["aux_loss"]).backward()
        self._optimizer.step()
        return loss.item()
