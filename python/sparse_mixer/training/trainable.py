"""What a trainer needs of a model."""

from __future__ import annotations

from typing import Any

from sparse_mixer.gradients import Gradients
from sparse_mixer.layers import Layer
from sparse_mixer.training.metrics import Metrics


class Trainable(Layer):
    """Base of what `fit` can train: weights, and a loss of a batch that can be differentiated.

    Attributes:
        encoder: The encoder.
        parts: The encoder, then the heads: everything that has weights in the core.
    """

    encoder: Any
    parts: list[Any]

    def loss_and_gradients(
        self, batch: Any, *, seed: int, into: Gradients | None = None, recompute: bool = False
    ) -> tuple[Metrics, Gradients]:
        """Metrics of a batch, among them ``loss``, and the gradients of that."""
        raise NotImplementedError

    def test_step(self, batch: Any) -> Metrics:
        """Metrics of a batch, as at inference."""
        raise NotImplementedError
