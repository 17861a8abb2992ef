"""Encoders from the Model Garden's configurations, beside what the Model Garden builds of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow_reference as reference
from encoders import ARGUMENTS, small_inputs
from sparse_mixer import SparseMixer

with reference._quiet():
    import tensorflow as tf
    from official.nlp.configs import encoders as official

SIZES = {name: value for name, value in ARGUMENTS.items() if name != "seed"}


def config(**changes: Any) -> Any:
    """A configuration whose settings differ from the defaults."""
    return official.SparseMixerEncoderConfig(**{**SIZES, "initializer_range": 0.3, **changes})


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_build_encoder(activation: str) -> None:
    whole = official.EncoderConfig(type="sparse_mixer", sparse_mixer=config(inner_activation=activation))
    with reference._quiet():
        theirs = official.build_encoder(whole)
        expected = theirs({name: tf.constant(array) for name, array in small_inputs().items()})
    for given in (whole, whole.sparse_mixer, whole.as_dict()):
        ours = SparseMixer.from_encoder_config(given, seed=1)
        spread = np.std(ours.get_embedding_table())
        assert 0.2 < spread < 0.3  # a truncated normal has 0.88 of its nominal deviation
        ours.set_weights(theirs.get_weights())
        found = ours(small_inputs())
        np.testing.assert_allclose(found["sequence_output"], expected["sequence_output"].numpy(), atol=1e-5)


def test_the_dict_of_a_configuration_is_one_of_arguments() -> None:
    ours = SparseMixer(**config().as_dict(), seed=1)
    assert ours.get_config()["initializer"]["config"]["stddev"] == 0.3
    assert SparseMixer(**config().as_dict(), seed=1).get_config() == ours.get_config()


def test_other_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"config: .*'bert'"):
        SparseMixer.from_encoder_config(official.EncoderConfig(type="bert"))
    with pytest.raises(TypeError, match=r"config: .*int"):
        SparseMixer.from_encoder_config(3)
    with pytest.raises(ValueError, match=r"initializer_range: .*initializer"):
        SparseMixer(10, initializer="zeros", initializer_range=0.1)
    with pytest.raises(ValueError, match=r"initializer_range: .*-1"):
        SparseMixer(10, initializer_range=-1.0)
