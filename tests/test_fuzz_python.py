"""Files that Python itself reads, damaged at random: training states and `config.json` beside weights.

`SPARSE_MIXER_FUZZ_INPUTS` is the number of inputs each, as for `tests/fuzz_corpus.rs`. HDF5 files, which can crash the
process, are in `test_damaged_files.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from damaged_files import damaged
from sparse_mixer import CheckpointError
from sparse_mixer.checkpoints.google_bert import read_google_bert
from sparse_mixer.checkpoints.hugging_face import read_hugging_face
from sparse_mixer.checkpoints.keras_hub import read_keras_hub
from sparse_mixer.training import state as train_state

INPUTS = int(os.environ.get("SPARSE_MIXER_FUZZ_INPUTS", "500"))
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "num_hidden_layers": 2,
    "vocab_size": 20,
    "hidden_size": 8,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "hidden_dropout_prob": 0.1,
}
TENSORS = ["embeddings.word_embeddings.weight", "pooler.dense.weight"]
HOSTILE = [None, [], {}, "x", -1, 2**70, 10**18, 1e400, float("nan"), True, [[[]]], ""]


@pytest.mark.parametrize("key", CONFIG)
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_hostile_configurations(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {key: value}))
    with contextlib.suppress(CheckpointError):
        # However many layers a file claims, no list of them is made before it is seen whether it has so many.
        assert sys.getsizeof(read_hugging_face(str(tmp_path), TENSORS)["attention_layers"]) < 1000


def test_damaged_configurations(tmp_path: Path) -> None:
    chance, good = random.Random(1), json.dumps(CONFIG).encode()
    for _ in range(INPUTS):
        (tmp_path / "config.json").write_bytes(damaged(good, chance))
        with contextlib.suppress(CheckpointError):
            read_hugging_face(str(tmp_path), TENSORS)


def test_damaged_configurations_of_other_programs(tmp_path: Path) -> None:
    chance = random.Random(3)
    google = json.dumps({key: value for key, value in CONFIG.items() if key != "model_type"}).encode()
    config = {"vocabulary_size": 20, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    config |= {"max_sequence_length": 16, "num_segments": 2, "dropout": 0.1}
    hub = json.dumps({"registered_name": "keras_hub>BertBackbone", "config": config}).encode()
    for folder in ("google", "hub"):
        (tmp_path / folder).mkdir()
    assert read_keras_hub(str(tmp_path)) is None
    for number in range(INPUTS // 2):
        (tmp_path / "google" / "bert_config.json").write_bytes(damaged(google, chance) if number else google)
        (tmp_path / "hub" / "config.json").write_bytes(damaged(hub, chance) if number else hub)
        found: dict[str, object] = {}
        with contextlib.suppress(CheckpointError):
            found["google"] = read_google_bert(str(tmp_path / "google"), TENSORS)
        with contextlib.suppress(CheckpointError):
            found["hub"] = read_keras_hub(str(tmp_path / "hub"))
        assert number or all(found.values())


def test_damaged_training_states(tmp_path: Path) -> None:
    path, chance = tmp_path / "state", random.Random(2)
    train_state.save(path, {"step": 3}, {"a/b": np.arange(12.0).reshape(3, 4), "c": np.ones(2, np.int64)})
    good = path.read_bytes()
    for _ in range(INPUTS):
        path.write_bytes(damaged(good, chance))
        with warnings.catch_warnings(), contextlib.suppress(ValueError, OSError):
            warnings.simplefilter("ignore")  # zipfile's, of odd archives
            meta, arrays = train_state.load(path)
            assert isinstance(meta, dict)
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
