"""Settings of optimisers and schedules that cannot work are refused where they are given, by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from sparse_mixer import optimizers, schedules

NEGATIVE, INFINITE, NAN = -0.1, math.inf, math.nan
OPTIMIZERS: dict[Callable[..., optimizers.Optimizer], dict[str, list[Any]]] = {
    optimizers.AdamW: {
        "weight_decay": [NEGATIVE],
        "beta_1": [NEGATIVE, 1.0, 1 - 1e-12],
        "beta_2": [NEGATIVE, 1.0, 1 - 1e-12],
        "epsilon": [NEGATIVE, 0.0, 1e-60],
    },
    optimizers.LAMB: {
        "weight_decay_rate": [NEGATIVE],
        "beta_1": [NEGATIVE, 1.0],
        "beta_2": [NEGATIVE, 1.0],
        "epsilon": [NEGATIVE, 0.0],
    },
    optimizers.SGD: {"momentum": [NEGATIVE, 1.0], "weight_decay": [NEGATIVE, 1e39]},
    optimizers.Adafactor: {
        "beta_2_decay": [0.8],
        "epsilon_1": [NEGATIVE, 0.0],
        "epsilon_2": [NEGATIVE],
        "clip_threshold": [NEGATIVE, 0.0],
        "weight_decay": [NEGATIVE],
    },
}
SCHEDULES: dict[Callable[..., schedules.LearningRateSchedule], tuple[dict[str, Any], dict[str, list[Any]]]] = {
    schedules.Constant: ({"learning_rate": 0.1}, {"learning_rate": [NEGATIVE]}),
    schedules.PolynomialDecay: (
        {"initial_learning_rate": 0.1, "decay_steps": 9},
        {
            "initial_learning_rate": [NEGATIVE],
            "decay_steps": [0, -1],
            "end_learning_rate": [NEGATIVE],
            "power": [NEGATIVE],
        },
    ),
    schedules.CosineDecay: (
        {"initial_learning_rate": 0.1, "decay_steps": 9},
        {"initial_learning_rate": [NEGATIVE], "decay_steps": [0, -1], "alpha": [NEGATIVE]},
    ),
    schedules.LinearWarmup: (
        {"after_warmup_lr_sched": 0.1, "warmup_steps": 9},
        {"warmup_steps": [-1], "warmup_learning_rate": [NEGATIVE]},
    ),
    schedules.PaperSchedule: (
        {"learning_rate": 0.1, "warmup_steps": 3, "total_steps": 9},
        {"learning_rate": [NEGATIVE], "warmup_steps": [-1], "total_steps": [3, -1]},
    ),
}
WHOLE = {"decay_steps", "warmup_steps", "total_steps"}


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.__name__)
def test_settings_of_optimisers(make: Callable[..., optimizers.Optimizer]) -> None:
    common: dict[str, list[Any]] = {"learning_rate": [NEGATIVE], "global_clipnorm": [NEGATIVE, 0.0]}
    for name, wrong in (OPTIMIZERS[make] | common).items():
        for value in [*wrong, INFINITE, NAN]:
            with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
                make(**{name: value})
        for value in ("0.5", [0.5], True, 1j):
            with pytest.raises(TypeError, match=rf"^{name}: expected a number"):
                make(**{name: value})


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.__name__)
def test_rates_and_norms_are_checked_when_they_are_set_later(make: Callable[..., optimizers.Optimizer]) -> None:
    optimizer = make(0.25, global_clipnorm=2.0)
    for name, before in (("learning_rate", 0.25), ("global_clipnorm", 2.0)):
        for value in (NEGATIVE, INFINITE, NAN):
            with pytest.raises(ValueError, match=rf"^{name}: expected"):
                setattr(optimizer, name, value)
        with pytest.raises(TypeError, match=rf"^{name}: expected a number"):
            setattr(optimizer, name, "0.1")
        assert getattr(optimizer, name) == before


def test_the_sign_of_adafactors_decay_is_explained() -> None:
    """optax writes the same exponent without its minus."""
    with pytest.raises(
        ValueError, match=r"beta_2_decay: got 0\.8, expected .* at most 0: .*optax .* without the minus"
    ):
        optimizers.Adafactor(beta_2_decay=0.8)
    encoder, inputs = small_encoder(), small_inputs()
    optimizer = optimizers.Adafactor(1e-2, beta_2_decay=-0.8)
    for seed in range(3):
        outputs, vjp = encoder.vjp(inputs, seed=seed)
        optimizer.apply_gradients(encoder, vjp({"pooled_output": outputs["pooled_output"]}))
    assert all(np.isfinite(weight).all() for weight in encoder.get_weights())


@pytest.mark.parametrize("make", SCHEDULES, ids=lambda make: make.__name__)
def test_settings_of_schedules(make: Callable[..., schedules.LearningRateSchedule]) -> None:
    valid, settings = SCHEDULES[make]
    make(**valid)
    for name, wrong in settings.items():
        for value in [*wrong, *([] if name in WHOLE else [INFINITE, NAN])]:
            with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
                make(**valid | {name: value})
        for value in ("3", [3], True, *([1.5] if name in WHOLE else [])):
            with pytest.raises(TypeError, match=rf"^{name}: expected"):
                make(**valid | {name: value})


@pytest.mark.parametrize("decay", [schedules.PolynomialDecay, schedules.CosineDecay])
def test_a_decay_that_is_over_when_the_warm_up_ends_draws_a_warning(decay: Any) -> None:
    for steps in (10, 9):
        with pytest.warns(UserWarning, match=r"warmup_steps: .* 10 steps, .* is over at \d+: .*decay_steps") as caught:
            schedule = schedules.LinearWarmup(decay(1e-3, steps), warmup_steps=10)
        assert caught[0].filename == __file__
        assert max(schedule(step) for step in range(30)) <= 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedules.LinearWarmup(decay(1e-3, 11), warmup_steps=10)
        schedules.LinearWarmup(1e-3, warmup_steps=10)
        schedules.LinearWarmup(schedules.PaperSchedule(1e-3, 2, 10), warmup_steps=10)
