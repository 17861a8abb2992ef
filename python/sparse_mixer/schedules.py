"""Learning-rate schedules, with Keras's and the Model Garden's names, arguments and formulas.

A schedule is called with the number of the update, from 0 for the first, and returns the learning rate. Optimisers take
one, a number, or any callable of that kind. Where a schedule is made of others, these may be numbers, schedules of this
module, schedules of Keras, or any callable from the number of the update to a rate.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.checks import as_float, as_step

_FRAMEWORKS = frozenset({"keras", "official", "tensorflow", "tf_keras"})


class LearningRateSchedule:
    """Base of the schedules: a configuration that the core evaluates."""

    # Whether a callable that the core does not know has a part in it.
    _is_foreign = False

    def __init__(self, name: str, **parameters: Any) -> None:
        self._config = {"name": name, **parameters}
        self._text = "" if self._is_foreign else json.dumps(self._config)
        self(0)  # refuses what cannot work now rather than in the first step

    @overload
    def __call__(self, step: float) -> float: ...

    @overload
    def __call__(self, step: npt.NDArray[Any]) -> npt.NDArray[np.float64]: ...

    @overload
    def __call__(self, step: Any) -> Any: ...

    def __call__(self, step: Any) -> Any:
        """The learning rate of update number `step`, from 0.

        Args:
            step: A number of any type, also between two updates, or an array or tensor of such.

        Returns:
            A float; for arrays with axes, a float64 array of their shape.

        Raises:
            TypeError: Not numbers.
            ValueError: Below 0, not finite, or at least 2**63.
        """
        steps = _as_steps(step)
        if not steps.shape:
            return self._at(steps.item())
        return np.array([self._at(each) for each in steps.ravel().tolist()], np.float64).reshape(steps.shape)

    def _at(self, step: float) -> float:
        """The rate at one number."""
        return _native.learning_rate(self._text, step)

    def get_config(self) -> dict[str, Any]:
        """Name and parameters, JSON-able unless one is a callable."""
        return copy.deepcopy(self._config)

    def __repr__(self) -> str:
        parameters = ", ".join(f"{key}={value!r}" for key, value in self._config.items() if key != "name")
        return f"{type(self).__name__}({parameters})"


class Constant(LearningRateSchedule):
    """The same rate always."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__("constant", learning_rate=as_float("learning_rate", learning_rate))


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
            initial_learning_rate=as_float("initial_learning_rate", initial_learning_rate),
            decay_steps=_as_whole("decay_steps", decay_steps),
            end_learning_rate=as_float("end_learning_rate", end_learning_rate),
            power=as_float("power", power),
        )


class CosineDecay(LearningRateSchedule):
    """Half a cosine from `initial_learning_rate` to `alpha` times it, in `decay_steps`."""

    def __init__(self, initial_learning_rate: float, decay_steps: int, alpha: float = 0.0) -> None:
        super().__init__(
            "cosine_decay",
            initial_learning_rate=as_float("initial_learning_rate", initial_learning_rate),
            decay_steps=_as_whole("decay_steps", decay_steps),
            alpha=as_float("alpha", alpha),
        )


class LinearWarmup(LearningRateSchedule):
    """A straight line to the rate that another schedule has at `warmup_steps`, then that schedule.

    The other schedule counts its steps from 0, too, so its number of steps must be that of the warm-up and the decay
    together; one that is over when the warm-up ends gives a UserWarning. Source:
    ``official.modeling.optimization.lr_schedule``.
    """

    def __init__(
        self,
        after_warmup_lr_sched: LearningRateSchedule | Callable[[int], float] | float,
        warmup_steps: int,
        warmup_learning_rate: float = 0.0,
    ) -> None:
        """Make one.

        Args:
            after_warmup_lr_sched: A number, a schedule of this module or of Keras, or any callable from the number of
                the update to a rate.
            warmup_steps: Steps of the line.
            warmup_learning_rate: Rate at step 0.
        """
        self._after = _as_schedule("after_warmup_lr_sched", after_warmup_lr_sched)
        self._is_foreign = self._after._is_foreign
        steps = _as_whole("warmup_steps", warmup_steps)
        super().__init__(
            "linear_warmup",
            after=self._after.get_config(),
            warmup_steps=steps,
            warmup_learning_rate=as_float("warmup_learning_rate", warmup_learning_rate),
        )
        decay_steps = self._after.get_config().get("decay_steps")
        if decay_steps is not None and decay_steps <= steps:
            warnings.warn(
                f"warmup_steps: the warm-up takes {steps} steps, and the decay that follows is over at {decay_steps}: "
                f"it counts its steps from 0, too. The rate goes to {self(steps)} and stays there. Pass the number of "
                "all steps, with those of the warm-up, as decay_steps",
                UserWarning,
                stacklevel=2,
            )

    def _at(self, step: float) -> float:
        if not self._is_foreign:
            return super()._at(step)
        # As the core does it.
        end, start = self._config["warmup_steps"], self._config["warmup_learning_rate"]
        if step >= end:
            return self._after._at(step)
        return float(start + step / end * (self._after._at(end) - start))


class PaperSchedule(LearningRateSchedule):
    """The paper's: linear warm-up from 0, linear decay to 0 at `total_steps`, where the decay starts again."""

    def __init__(self, learning_rate: float, warmup_steps: int, total_steps: int) -> None:
        super().__init__(
            "paper",
            learning_rate=as_float("learning_rate", learning_rate),
            warmup_steps=_as_whole("warmup_steps", warmup_steps),
            total_steps=_as_whole("total_steps", total_steps),
        )


class _Called(LearningRateSchedule):
    """A schedule from elsewhere: a callable from the number of the update to a rate."""

    _is_foreign = True

    def __init__(self, argument: str, function: Callable[[Any], Any]) -> None:
        self._argument = argument
        self._function = function
        super().__init__("callable", function=function)

    def _at(self, step: float) -> float:
        return as_float(f"{self._argument}({step})", self._function(step))


def _as_schedule(argument: str, value: Any) -> LearningRateSchedule:
    """A schedule from a number, a schedule of this module or of Keras, or a callable."""
    if isinstance(value, LearningRateSchedule):
        return value
    if not callable(value):
        return Constant(as_float(argument, value))
    kind = type(value)
    if kind.__module__.split(".")[0] in _FRAMEWORKS and hasattr(value, "get_config"):
        config = dict(value.get_config())
        config.pop("name", None)
        own: type[LearningRateSchedule] | None = {"PolynomialDecay": PolynomialDecay, "CosineDecay": CosineDecay}.get(
            kind.__name__
        )
        extras = {key: config.pop(key, None) for key in ("cycle", "warmup_target", "warmup_steps")}
        if own is not None and not any(extras.values()):
            return own(**config)
    return _Called(argument, value)


def _as_whole(argument: str, value: Any) -> int:
    """A number of steps: an integer of any type, or a float without a fraction."""
    try:
        number = np.asarray(value)
        if number.dtype.kind == "f" and number.ndim == 0 and float(number).is_integer():
            value = int(number)
    except (TypeError, ValueError):
        pass
    return as_step(argument, value)


def _as_steps(value: Any) -> npt.NDArray[Any]:
    """Numbers of updates, as floats or integers."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        # Integers beyond 64 bits make an array of objects.
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(f"step: got {value}, expected at least 0 and less than 2**63")
        raise TypeError(f"step: expected a number or an array of numbers, got {value!r} ({type(value).__name__})")
    wrong = ~((array >= 0) & (array < 2.0**63))
    if wrong.any():
        raise ValueError(f"step: got {array[wrong].ravel()[0]}, expected at least 0 and less than 2**63")
    return array
