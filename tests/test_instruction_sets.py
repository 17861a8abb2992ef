"""Which instructions compute: chosen by the machine, the environment or an argument."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import sparse_mixer
from encoders import small_encoder, small_inputs

AVAILABLE = sparse_mixer.cpu_info()["available"]


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_the_environment_pins_one(isa: str) -> None:
    done = python("import sparse_mixer; print(sparse_mixer.cpu_info()['isa'])", SPARSE_MIXER_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


def test_an_unknown_one_in_the_environment_is_named() -> None:
    done = python("import sparse_mixer; sparse_mixer.SparseMixer(9)", SPARSE_MIXER_ISA="mmx")
    assert 'ValueError: SPARSE_MIXER_ISA: got "mmx"' in done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("isa", AVAILABLE)
def test_all_compute_the_same_function(isa: str, dtype: str) -> None:
    """Within what rounding of sums explains; bytes are summed exactly."""
    wanted = small_encoder(dtype=dtype, isa="portable", moe_layers=())(small_inputs())["sequence_output"]
    got = small_encoder(dtype=dtype, isa=isa, moe_layers=())(small_inputs())["sequence_output"]
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 1e-5, "int8": 2e-2}[dtype]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)


def test_the_best_is_the_default() -> None:
    assert sparse_mixer.cpu_info()["isa"] == os.environ.get("SPARSE_MIXER_ISA", AVAILABLE[-1])
