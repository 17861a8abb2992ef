"""Odd values to training, evaluation and files: a typed error, or a result; the model stays usable."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import ARGUMENTS, LENGTH, VOCAB_SIZE, small_encoder, small_inputs
from hypothesis import given
from hypothesis import strategies as st
from odd_values import REFUSED, assert_helps, many, odd_arrays
from sparse_mixer import _native, checkpoints, models, optimizers, text, training

LABELLED = (small_inputs(4), np.array([0, 1, 1, 0]))
ENCODER = small_encoder(num_threads=1)
TOKENIZER = text.train_tokenizer(["some words to learn pieces from"], vocab_size=VOCAB_SIZE)


def classifier() -> models.BertClassifier:
    return models.BertClassifier(small_encoder(num_threads=1), 2, seed=0)


def fit(data: Any = LABELLED, **arguments: Any) -> None:
    """One short run, and another call to see that all is well."""
    model = classifier()
    try:
        training.fit(model, data, progress=False, **({"optimizer": optimizers.SGD(0.1)} | arguments))
    finally:
        model.evaluate(LABELLED)


def path_of(value: Any, folder: Path) -> Any:
    """Text and bytes as a name in the folder, everything else as it is."""
    if isinstance(value, bytes):
        return bytes(folder) + b"/" + value.replace(b"/", b"_")
    return str(folder / value.replace("/", "_")) if isinstance(value, str) else value


RUNS: dict[str, Callable[[Any, Path], Any]] = {
    "data": lambda x, _: fit(x),
    "labels": lambda x, _: fit((LABELLED[0], x)),
    "sample weights": lambda x, _: fit((*LABELLED, x)),
    "optimizer": lambda x, _: fit(optimizer=x),
    "batch_size": lambda x, _: fit(batch_size=x),
    "steps_per_epoch": lambda x, _: fit(batch_size=1, steps_per_epoch=x),
    "shuffle": lambda x, _: fit(shuffle=x),
    "drop_remainder": lambda x, _: fit(batch_size=3, drop_remainder=x),
    "seed": lambda x, _: fit(seed=x),
    "transform": lambda x, _: fit(transform=x),
    "what transform returns": lambda x, _: fit(transform=lambda batch, seed: x),
    "accumulation_steps": lambda x, _: fit(batch_size=1, accumulation_steps=x),
    "recompute": lambda x, _: fit(recompute=x),
    "validation_data": lambda x, _: fit(validation_data=x),
    "callbacks": lambda x, _: fit(callbacks=x),
    "state_path": lambda x, folder: fit(state_path=path_of(x, folder)),
    "save_every": lambda x, folder: fit(state_path=folder / "state.npz", save_every=x, resume=False),
    "resume": lambda x, folder: fit(state_path=folder / "state.npz", resume=x),
    # Not run: odd numbers of epochs may be large.
    "epochs": lambda x, _: training.Trainer(classifier(), LABELLED, optimizer=optimizers.SGD(), epochs=x, seed=0),
    "trained model": lambda x, _: training.Trainer(x, LABELLED, optimizer=optimizers.SGD(), seed=0),
    "restore": lambda x, folder: training.Trainer(classifier(), LABELLED, optimizer=optimizers.SGD(), seed=0).restore(
        path_of(x, folder)
    ),
    "evaluated data": lambda x, _: classifier().evaluate(x),
    "evaluation's batch_size": lambda x, _: classifier().evaluate(LABELLED, batch_size=x),
    "predict": lambda x, _: classifier().predict(x),
    "save": lambda x, folder: ENCODER.save(path_of(x, folder)),
    "file_format": lambda x, folder: ENCODER.save(folder / "saved", file_format=x),
    "save a model": lambda x, folder: classifier().save(path_of(x, folder)),
    "load": lambda x, folder: sparse_mixer.SparseMixer.load(path_of(x, folder)),
    "load a model": lambda x, folder: models.Model.load(path_of(x, folder)),
    "load_weights": lambda x, folder: ENCODER.load_weights(path_of(x, folder)),
    "load_weights of a model": lambda x, folder: classifier().load_weights(path_of(x, folder)),
    "config": lambda x, folder: sparse_mixer.SparseMixer.load(folder / "whole.safetensors", config=x),
    "prefix": lambda x, folder: sparse_mixer.SparseMixer.load(folder / "whole.safetensors", prefix=x),
    "threads of load": lambda x, folder: sparse_mixer.SparseMixer.load(folder / "whole.safetensors", num_threads=x),
    "isa of load": lambda x, folder: sparse_mixer.SparseMixer.load(folder / "whole.safetensors", isa=x),
    "dtype of load": lambda x, folder: sparse_mixer.SparseMixer.load(folder / "whole.safetensors", dtype=x),
    "from_flax": lambda x, folder: sparse_mixer.SparseMixer.from_flax(path_of(x, folder), {"pad_id": 0}),
    "from_flax config": lambda x, _: sparse_mixer.SparseMixer.from_flax({"a": np.zeros(3, np.float32)}, x),
    "preset": lambda x, _: sparse_mixer.SparseMixer.from_preset(x),
    "weights of a preset": lambda x, folder: sparse_mixer.SparseMixer.from_preset(
        "sparse_mixer_small", path_of(x, folder) if x is not None else {}
    ),
    "adam": lambda x, folder: checkpoints.read_adam_state(ENCODER, path_of(x, folder)),
    "texts": lambda x, _: text.encode(TOKENIZER, x, LENGTH),
    "length": lambda x, _: text.encode(TOKENIZER, ["words"], x),
    "vocab_size of a tokenizer": lambda x, _: text.train_tokenizer(["words"], vocab_size=x),
    # The binding by itself, which the shim usually stands before.
    "native config": lambda x, _: _native.Encoder(x),
    "native names": lambda x, _: _native.foreign_names("flax", x, [3]),
    "native schedule": lambda x, _: _native.learning_rate("{}", x),
    "native weights": lambda x, _: ENCODER.core.assign([0], [x]),
    "native index": lambda x, _: ENCODER.core.get_weight(x),
}
_FILES = ("state_path", "restore", "save", "load", "load_weights", "from_flax", "adam", "weights")
ALSO: dict[str, tuple[type[Exception], ...]] = {
    **{name: (OSError,) for name in RUNS if name.split()[0] in _FILES},
    "length": (MemoryError,),
    "preset": (KeyError,),
    "native config": (OverflowError,),
    "native index": (OverflowError,),
    "native schedule": (OverflowError,),
}

_DATA = ("data", "batch", "inputs", "input_word_ids", "labels", "sample_weight", "validation_data")
# The arguments that a message may name; where nothing stands here, the name of the call.
NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["data", "labels", "sample weights", "evaluated data", "predict", "validation_data"], _DATA),
    "what transform returns": (*_DATA, "input_type_ids", "input_mask"),
    "trained model": ("model",),
    "restore": ("path",),
    "evaluation's batch_size": ("batch_size",),
    "save": ("path",),
    "save a model": ("path",),
    "load": ("path",),
    "load a model": ("path",),
    "load_weights": ("source", "the mapping of weights"),
    "load_weights of a model": ("source", "the mapping of weights"),
    "config": ("config",),
    "threads of load": ("num_threads",),
    "isa of load": ("isa",),
    "dtype of load": ("dtype",),
    "from_flax": ("params", "config"),
    "from_flax config": ("config",),
    "preset": ("name",),
    "weights of a preset": ("weights", "the mapping of weights"),
    "adam": ("source", "the mapping of weights"),
    "length": ("sequence_length",),
    "vocab_size of a tokenizer": ("vocab_size",),
    "native config": ("config",),
    "native names": ("name",),
    "native schedule": ("schedule", "step"),
    "native weights": ("word_embeddings/embeddings",),
    "native index": ("index",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd")
    ENCODER.save(path / "whole.safetensors")
    return path


@many
@given(st.sampled_from(sorted(RUNS)), odd_arrays())
def test_runs(folder: Path, name: str, value: Any) -> None:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            RUNS[name](value, folder)
        except (FloatingPointError, *ALSO.get(name, ())):
            pass
        except REFUSED as error:
            assert_helps(error, *NAMES.get(name, (name,)), str(folder))
    assert sparse_mixer.SparseMixer.load(folder / "whole.safetensors").arguments.hidden_size == ARGUMENTS["hidden_size"]
