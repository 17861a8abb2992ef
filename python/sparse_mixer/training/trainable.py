"""What a trainer needs of a model."""

from __future__ import annotations

from collections.abc import Mapping
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

    def loss_divisors(self, batch: Any) -> dict[str, float]:
        """What the terms of a batch's loss are divided by, and as ``weight`` what its labels weigh altogether."""
        raise NotImplementedError

    def loss_and_gradients(
        self,
        batch: Any,
        *,
        seed: int | None = None,
        into: Gradients | None = None,
        recompute: bool = False,
        divisors: Mapping[str, float] | None = None,
    ) -> tuple[Metrics, Gradients]:
        """Metrics of a batch, among them ``loss``, and the gradients of that.

        With the `divisors` of several batches, added up, the gradients of these add up to those of one large batch.
        """
        raise NotImplementedError

    def test_step(self, batch: Any) -> Metrics:
        """Metrics of a batch, as at inference."""
        raise NotImplementedError
