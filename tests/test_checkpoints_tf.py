"""Files exchanged with real TensorFlow, both ways."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import ARGUMENTS, small_inputs
from tensorflow_reference import TensorFlowEncoder, tf, tf_keras

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "projected, pre-norm": {"norm_first": True, "embedding_width": 10, "moe_layers": (0, 2)},
    "attention in every expert layer": {"attention_layers": (0, 1, 2), "moe_layers": (0, 1, 2)},
    "no experts": {"moe_layers": (), "attention_layers": ()},
}


def arguments(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**ARGUMENTS, **changes}.items() if key != "seed"}


@pytest.fixture(params=CONFIGURATIONS)
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    """Arguments, and TensorFlow's encoder with random weights, biases and norms included."""
    config = arguments(CONFIGURATIONS[request.param])
    reference = TensorFlowEncoder(config, small_inputs())
    random = np.random.default_rng(3)
    layer = reference.layer
    layer.set_weights([random.normal(0, 0.3, w.shape).astype(np.float32) for w in layer.get_weights()])
    return config, reference


def functional(layer: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tf_keras.Model(layer.inputs, layer(layer.inputs))


def save(reference: Any, kind: str, folder: Path) -> Path:
    """Saves the reference encoder with TensorFlow's own code; returns what to load."""
    layer = reference.layer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "checkpoint":
            return Path(tf.train.Checkpoint(model=layer).save(str(folder / "ckpt")))
        model = functional(layer)
        if kind == "saved_model":
            tf.saved_model.save(model, str(folder / "saved"))
            return folder / "saved"
        target = {"weights": "prefix", "weights_h5": "x.weights.h5", "h5": "x.h5"}[kind]
        model.save_weights(str(folder / target))
        return folder / target


@pytest.mark.parametrize("kind", ["checkpoint", "weights", "saved_model", "weights_h5", "h5"])
def test_tensorflows_files_give_tensorflows_outputs(case: Any, kind: str, tmp_path: Path) -> None:
    config, reference = case
    path = save(reference, kind, tmp_path)
    encoder = sparse_mixer.SparseMixer(**config)
    assert encoder.load_weights(path).complete
    for ours, theirs in zip(encoder.get_weights(), reference.layer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    outputs, expected = encoder(small_inputs()), reference(small_inputs())
    np.testing.assert_allclose(outputs["sequence_output"], expected["sequence_output"], atol=1e-4, rtol=1e-4)


def test_tensorflow_reads_our_weights_h5(case: Any, tmp_path: Path) -> None:
    config, reference = case
    encoder = sparse_mixer.SparseMixer(**config, seed=21)
    encoder.save(tmp_path / "ours.weights.h5")
    model = functional(reference.layer)
    model.load_weights(str(tmp_path / "ours.weights.h5"))
    for ours, theirs in zip(encoder.get_weights(), reference.layer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
