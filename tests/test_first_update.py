"""The first update, for which moments and masters are made: refused, it leaves nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from sparse_mixer import optimizers

RULES: dict[str, Any] = {
    "adamw": optimizers.AdamW,
    "lamb": optimizers.LAMB,
    "momentum": lambda rate, **settings: optimizers.SGD(rate, 0.9, **settings),
    "adafactor": optimizers.Adafactor,
}


def gradients(encoder: Any) -> dict[str, Any]:
    outputs, vjp = encoder.vjp(small_inputs(), training=False)
    return dict(
        vjp(
            {
                "sequence_output": np.sin(np.arange(outputs["sequence_output"].size, dtype=np.float32)).reshape(
                    outputs["sequence_output"].shape
                )
            }
        )
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rule", RULES)
def test_a_refused_first_update_changes_nothing(rule: str, dtype: str) -> None:
    undisturbed, encoder = small_encoder(dtype=dtype), small_encoder(dtype=dtype)
    expected = RULES[rule](1e-2, global_clipnorm=1.0)
    expected.apply_gradients(undisturbed, gradients(undisturbed))

    optimizer, weights = RULES[rule](1e-2, global_clipnorm=1.0), encoder.get_weights()
    bad = gradients(encoder)
    key = encoder.trainable_weights[0].key
    bad[key] = np.full_like(np.asarray(bad[key]), np.nan)
    with pytest.raises(ValueError, match="norm"):
        optimizer.apply_gradients(encoder, bad)
    assert optimizer.iterations == 0
    assert not any(np.any(moment) for moment in optimizer.get_state()[1].values())
    for before, after in zip(weights, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)

    optimizer.apply_gradients(encoder, gradients(encoder))
    for one, other in zip(undisturbed.get_weights(), encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    its_state, state = expected.get_state(), optimizer.get_state()
    assert its_state[0] == state[0] == 1
    assert its_state[1].keys() == state[1].keys()
    for name, moment in its_state[1].items():
        np.testing.assert_array_equal(moment, state[1][name], name)
