"""Our module of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peer_ours import build_encoder
from benchmarks.workload import Workload


def build_module(workload: Workload, threads: int, same_weights: bool) -> Any:
    """Return the module, with the weights that all peers share or those it draws itself, and PyTorch at `threads`."""
    import torch

    torch.set_num_threads(threads)
    return build_encoder(workload, threads, same_weights, "float32").as_torch_module()


class Peer:
    """The module without gradients."""

    def __init__(self, workload: Workload, threads: int, *, same_weights: bool = True) -> None:
        """Build the module."""
        self._module = build_module(workload, threads, same_weights).eval()

    def __call__(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return `sequence_output` and `pooled_output` as float32 arrays."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.no_grad():
            outputs = self._module(tensors, outputs=("sequence_output", "pooled_output"))
        return outputs["sequence_output"].numpy(), outputs["pooled_output"].numpy()
