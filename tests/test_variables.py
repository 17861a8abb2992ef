"""Weights as variables: reading, computing with them, assigning."""

from __future__ import annotations

import numpy as np
import pytest
from encoders import WIDTH, small_encoder
from sparse_mixer._core.variables import Variable


@pytest.fixture
def variable() -> Variable:
    found = small_encoder().pooler_layer.weights[0]
    assert isinstance(found, Variable)
    return found


def test_variables_are_read_as_arrays(variable: Variable) -> None:
    values = variable.numpy()
    np.testing.assert_array_equal(variable[1, 2:4], values[1, 2:4])
    np.testing.assert_array_equal(list(variable), list(values))
    np.testing.assert_array_equal(variable.value(), values)
    np.testing.assert_array_equal(variable.read_value(), values)
    variable[0][:] = 9.0
    np.testing.assert_array_equal(variable.numpy(), values)


def test_arithmetic_gives_arrays_on_either_side(variable: Variable) -> None:
    values, other = variable.numpy(), np.full((WIDTH, WIDTH), 0.5, np.float32)
    for found, expected in [
        (variable + 1, values + 1),
        (1 - variable, 1 - values),
        (other * variable, other * values),
        (variable / other, values / other),
        (variable // other, values // other),
        (variable % other, values % other),
        (variable**2, values**2),
        (2**variable, 2**values),
        (other @ variable, other @ values),
        (variable @ other, values @ other),
        (variable - variable, values - values),
        (-variable, -values),
        (abs(variable), abs(values)),
        (variable < 0, values < 0),
        (other >= variable, other >= values),
        (np.exp(variable), np.exp(values)),
    ]:
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, expected)
    assert variable == variable
    assert len({variable, variable}) == 1


def test_adding_and_subtracting_in_place() -> None:
    encoder = small_encoder()
    kernel = encoder.pooler_layer.weights[0]
    values, version = kernel.numpy(), encoder.weights_version
    kernel.assign_add(np.ones(WIDTH))
    np.testing.assert_array_equal(kernel.numpy(), values + np.float32(1))
    kernel.assign_sub(2.0)
    np.testing.assert_array_equal(encoder.pooler_layer.get_weights()[0], values + np.float32(1) - np.float32(2))
    assert encoder.weights_version > version
    with pytest.raises(ValueError, match="shape"):
        kernel.assign_add(np.ones((2, WIDTH, WIDTH)))
    with pytest.raises(TypeError, match="delta"):
        kernel.assign_sub("much")
