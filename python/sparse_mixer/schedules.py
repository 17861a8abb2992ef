"""Learning-rate schedules, with Keras's and the Model Garden's names, arguments and formulas.

A schedule is called with the number of the update, from 0 for the first, and returns the learning rate. Optimisers take
one, a number, or any callable of that kind.
"""

from __future__ import annotations

import json
from typing import Any

from sparse_mixer import _native
from sparse_mixer._core.arguments import as_int, as_step


class LearningRateSchedule:
    """Base of the schedules: a configuration that the core evaluates."""

    def __init__(self, name: str, **parameters: Any) -> None:
        self._config = {"name": name, **parameters}
        self._text = json.dumps(self._config)
        self(0)  # refuses what cannot work now rather than in the first step

    def __call__(self, step: int) -> float:
        """The learning rate of update number `step`, from 0.

        Raises:
            TypeError: Not an integer.
            ValueError: Below 0 or at least 2**63.
        """
        return _native.learning_rate(self._text, as_step("step", step))

    def get_config(self) -> dict[str, Any]:
        """Name and parameters, JSON-able."""
        config: dict[str, Any] = json.loads(self._text)
        return config

    def __repr__(self) -> str:
        parameters = ", ".join(f"{key}={value!r}" for key, value in self._config.items() if key != "name")
        return f"{type(self).__name__}({parameters})"


class Constant(LearningRateSchedule):
    """The same rate always."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__("constant", learning_rate=float(learning_rate))


class PolynomialDecay(LearningRateSchedule):
    """``(initial - end) (1 - min(step, decay_steps) / decay_steps)^power + end``; `power` 1 is linear decay."""

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
    ) -> None:
        super().__init__(
            "polynomial_decay",
            initial_learning_rate=float(initial_learning_rate),
            decay_steps=as_int("decay_steps", decay_steps),
            end_learning_rate=float(end_learning_rate),
            power=float(power),
        )


class CosineDecay(LearningRateSchedule):
    """Half a cosine from `initial_learning_rate` to `alpha` times it, in `decay_steps`."""

    def __init__(self, initial_learning_rate: float, decay_steps: int, alpha: float = 0.0) -> None:
        super().__init__(
            "cosine_decay",
            initial_learning_rate=float(initial_learning_rate),
            decay_steps=as_int("decay_steps", decay_steps),
            alpha=float(alpha),
        )


class LinearWarmup(LearningRateSchedule):
    """A straight line to the rate that another schedule has at `warmup_steps`, then that schedule.

    The other schedule counts its steps from 0, too. Source: ``official.modeling.optimization.lr_schedule``.
    """

    def __init__(
        self,
        after_warmup_lr_sched: LearningRateSchedule | float,
        warmup_steps: int,
        warmup_learning_rate: float = 0.0,
    ) -> None:
        after = after_warmup_lr_sched
        if not isinstance(after, LearningRateSchedule):
            after = Constant(after)
        super().__init__(
            "linear_warmup",
            after=after.get_config(),
            warmup_steps=as_int("warmup_steps", warmup_steps),
            warmup_learning_rate=float(warmup_learning_rate),
        )


class PaperSchedule(LearningRateSchedule):
    """The paper's: linear warm-up from 0, linear decay to 0 at `total_steps`, where the decay starts again."""

    def __init__(self, learning_rate: float, warmup_steps: int, total_steps: int) -> None:
        super().__init__(
            "paper",
            learning_rate=float(learning_rate),
            warmup_steps=as_int("warmup_steps", warmup_steps),
            total_steps=as_int("total_steps", total_steps),
        )
