"""Learning-rate schedules: what they take, and what they refuse by name."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder
from sparse_mixer import initializers, optimizers, schedules


class Tensor:
    """A number as frameworks hold it: known to numpy only by ``__array__``."""

    def __init__(self, value: Any) -> None:
        self._value = np.asarray(value)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self._value if dtype is None else self._value.astype(dtype)

    def __float__(self) -> float:
        return float(self._value)


OWN = [
    schedules.Constant(1e-3),
    schedules.PolynomialDecay(1e-3, 10, 1e-4, 2.0),
    schedules.CosineDecay(1e-3, 10, 0.1),
    schedules.LinearWarmup(schedules.CosineDecay(1e-3, 10), 4, 1e-5),
    schedules.PaperSchedule(1e-3, 3, 8),
]


@pytest.mark.parametrize("schedule", OWN, ids=lambda schedule: type(schedule).__name__)
def test_a_step_is_any_number_or_array(schedule: schedules.LearningRateSchedule) -> None:
    rates = [schedule(step) for step in range(12)]
    assert all(type(rate) is float for rate in rates)
    for form in (float, np.int32, np.uint8, np.float32, np.asarray, Tensor):
        assert [schedule(form(step)) for step in range(12)] == rates
    np.testing.assert_array_equal(schedule(np.arange(12).reshape(3, 4)), np.reshape(rates, (3, 4)))
    # Between two updates, as in Keras.
    low, high = sorted((schedule(4), schedule(5)))
    assert low <= schedule(4.5) <= high


def test_rates_and_lengths_are_any_numbers() -> None:
    expected = schedules.LinearWarmup(schedules.PolynomialDecay(0.5, 10, 0.25), 4)
    half, quarter = Tensor(np.float32(0.5)), np.array(0.25)
    given = schedules.LinearWarmup(schedules.PolynomialDecay(half, np.int64(10), quarter), 4.0)  # type: ignore[arg-type]
    assert [given(step) for step in range(12)] == [expected(step) for step in range(12)]
    assert schedules.LinearWarmup(Tensor(0.5), 4)(4) == 0.5  # type: ignore[arg-type]


def test_a_warm_up_leads_to_any_schedule() -> None:
    """A schedule of ours, one inside another, and a callable from elsewhere, such as a schedule of Keras."""
    inner = schedules.LinearWarmup(schedules.PolynomialDecay(1e-3, 20), 6, 1e-5)
    own = schedules.LinearWarmup(inner, 3)
    foreign = schedules.LinearWarmup(lambda step: np.float32(inner(step)), 3)
    nested = schedules.LinearWarmup(schedules.LinearWarmup(lambda step: 1e-3, 6), 3)
    for step in range(25):
        assert foreign(step) == pytest.approx(own(step), rel=1e-6)
    assert [nested(step) for step in (0, 3, 6, 9)] == pytest.approx([0.0, 5e-4, 1e-3, 1e-3])
    optimizer = optimizers.SGD(foreign)
    assert optimizer.current_learning_rate() == 0.0
    assert callable(foreign.get_config()["after"]["function"])
    with pytest.raises(TypeError, match=r"after_warmup_lr_sched\(0\): expected a number, got 'fast'"):
        schedules.LinearWarmup(lambda step: "fast", 3)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("schedule", OWN, ids=lambda schedule: type(schedule).__name__)
def test_schedules_travel(schedule: schedules.LearningRateSchedule) -> None:
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert [twin(step) for step in range(12)] == [schedule(step) for step in range(12)]
        assert twin.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: schedules.Constant(math.nan), ValueError, "learning_rate: expected a finite number, got nan"),
        (lambda: schedules.PolynomialDecay(1.0, 3, math.inf), ValueError, "end_learning_rate: expected a finite"),
        (lambda: schedules.CosineDecay("fast", 3), TypeError, "initial_learning_rate: expected a number, got 'fast'"),
        (lambda: schedules.CosineDecay(1.0, 3, alpha=None), TypeError, "alpha: expected a number, got None"),
        (lambda: schedules.LinearWarmup("fast", 3), TypeError, "after_warmup_lr_sched: expected a number, got 'fast'"),
        (lambda: schedules.LinearWarmup(1.0, math.nan), TypeError, "warmup_steps: expected an integer, got nan"),
        (lambda: schedules.Constant(1.0)(-1), ValueError, "step: got -1, expected at least 0"),
        (lambda: schedules.Constant(1.0)(math.nan), ValueError, "step: got nan, expected at least 0"),
        (lambda: schedules.Constant(1.0)("x"), TypeError, "step: expected a number or an array of numbers, got 'x'"),
        (lambda: schedules.Constant(1.0)(True), TypeError, "step: expected a number"),
        (lambda: initializers.Constant(math.nan), ValueError, "value: expected a finite number, got nan"),
        (lambda: initializers.Constant(np.ones(3)), TypeError, "value: expected a number"),
        (lambda: initializers.RandomNormal(stddev=math.inf), ValueError, "stddev: expected a finite number, got inf"),
        (
            lambda: small_encoder(initializer={"class_name": "Constant", "config": {"value": math.nan}}),
            ValueError,
            "nan",
        ),
        (
            lambda: small_encoder(inner_activation={"name": "elu", "alpha": math.nan}),
            ValueError,
            "alpha: expected a fin",
        ),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(call: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
