"""Kills and other threads while a file is saved."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder
from sparse_mixer import SparseMixer
from sparse_mixer.training import state as train_state

pytestmark = pytest.mark.usefixtures("no_frameworks")
# `make crash` has 300.
KILLS = int(os.environ.get("SPARSE_MIXER_TEST_KILLS", "12"))


_SAVED = {
    "vocab_size": 20_000,
    "hidden_size": 64,
    "num_layers": 2,
    "moe_layers": (),
    "attention_layers": (),
    "inner_dim": 128,
    "max_sequence_length": 16,
}
_SAVER = f"""
import sys, pathlib, sparse_mixer
from sparse_mixer.training import state as train_state
path = sys.argv[1]
encoders = [
    sparse_mixer.SparseMixer(**{_SAVED}, initializer={{"class_name": "Constant", "config": {{"value": value}}}})
    for value in (1.0, 2.0)
]
print("ready", flush=True)
while True:
    for encoder in encoders:
        if path.endswith(".state"):
            train_state.save(pathlib.Path(path), {{}}, {{w.key: w.numpy() for w in encoder.weights}})
        else:
            encoder.save(path)
"""


def saved_weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The weights in a file of `_SAVER`."""
    if path.suffix == ".state":
        return train_state.load(path)[1]
    config = None if path.suffix == ".safetensors" else _SAVED
    return {weight.key: weight.numpy() for weight in SparseMixer.load(path, config=config).weights}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".weights.h5", ".state"])
def test_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"encoder{ending}"
    generator = random.Random(11)
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", _SAVER, path], stdout=subprocess.PIPE) as saver:
            assert saver.stdout is not None
            saver.stdout.readline()
            while not path.exists():
                time.sleep(0.001)
            time.sleep(generator.random() * 0.1)
            saver.kill()
        values = {float(array.flat[0]) for key, array in saved_weights(path).items() if key.endswith("kernel")}
        assert values in ({1.0}, {2.0})
    if ending == ".state":
        train_state.save(path, {}, {})
    else:
        small_encoder().save(path)
    assert os.listdir(tmp_path) == [path.name], "the next save removes what killed ones left behind"


def test_a_file_holds_the_weights_of_one_moment(tmp_path: Path) -> None:
    encoder = small_encoder()
    stop = threading.Event()
    constant = [[np.full(w.shape, value, np.float32) for w in encoder.weights] for value in (1.0, 2.0)]
    encoder.set_weights(constant[0])

    def write() -> None:
        while not stop.is_set():
            for weights in constant:
                encoder.set_weights(weights)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(30):
            path = tmp_path / f"{number % 2}.npz"
            encoder.save(path)
            assert len({float(array.flat[0]) for array in np.load(path).values()}) == 1
            encoder.load_weights(path)
    finally:
        stop.set()
        writer.join()
