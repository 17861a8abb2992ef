"""Files exchanged with real TensorFlow, both ways: the same weights and the same outputs.

What TensorFlow has written is loaded in a process where importing it fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from closeness import assert_output_close
from encoders import ARGUMENTS, small_inputs
from tensorflow_reference import TensorFlowEncoder, tf, tf_keras

Array = np.ndarray[Any, Any]

LOADER = Path(__file__).with_name("load_without_frameworks.py")
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "projected, pre-norm": {"norm_first": True, "embedding_width": 10, "moe_layers": (0, 2)},
    "attention in every expert layer": {"attention_layers": (0, 1, 2), "moe_layers": (0, 1, 2)},
    "no experts": {"moe_layers": (), "attention_layers": ()},
}
KINDS = ["checkpoint", "weights", "saved_model", "weights_h5", "h5"]
OUTPUTS = ("sequence_output", "pooled_output")


def arguments(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**ARGUMENTS, **changes}.items() if key != "seed"}


def random_weights(shapes: list[tuple[int, ...]], seed: int) -> list[Array]:
    """Random values, biases and norms included."""
    random = np.random.default_rng(seed)
    return [random.normal(0, 0.3, shape).astype(np.float32) for shape in shapes]


def reference_of(config: dict[str, Any]) -> TensorFlowEncoder:
    reference = TensorFlowEncoder(config, small_inputs())
    reference.layer.set_weights(random_weights(reference.weight_shapes, seed=3))
    return reference


@pytest.fixture(params=CONFIGURATIONS)
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], TensorFlowEncoder]:
    """Arguments, and TensorFlow's encoder with random weights."""
    config = arguments(CONFIGURATIONS[request.param])
    return config, reference_of(config)


def functional(layer: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tf_keras.Model(layer.inputs, layer(layer.inputs))


def save(model: Any, kind: str, folder: Path, **items: Any) -> Path:
    """Saves a model with TensorFlow's own code; returns what to load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "checkpoint":
            return Path(tf.train.Checkpoint(model=model, **items).save(str(folder / "ckpt")))
        if kind == "saved_model":
            tf.saved_model.save(model, str(folder / "saved"))
            return folder / "saved"
        target = {"weights": "prefix", "weights_h5": "x.weights.h5", "h5": "x.h5"}[kind]
        model.save_weights(str(folder / target))
        return folder / target


def assert_gives_the_outputs(path: Path, config: dict[str, Any], reference: TensorFlowEncoder, folder: Path) -> str:
    """Loads `path` without TensorFlow and compares; returns where in the file the encoder was."""
    (folder / "config.json").write_text(json.dumps(config))
    np.savez(folder / "inputs.npz", **small_inputs())
    files = [path, folder / "config.json", folder / "inputs.npz", folder / "outputs.npz"]
    subprocess.run([sys.executable, LOADER, *files], check=True, timeout=60)
    loaded = np.load(folder / "outputs.npz")
    assert loaded["complete"]
    for number, theirs in enumerate(reference.layer.get_weights()):
        np.testing.assert_array_equal(loaded[f"weight/{number}"], theirs)
    expected = reference(small_inputs())
    for name in OUTPUTS:
        assert_output_close(name, loaded[name], expected[name])
    return str(loaded["prefix"])


@pytest.mark.parametrize("kind", KINDS)
def test_tensorflows_files_give_tensorflows_outputs(case: Any, kind: str, tmp_path: Path) -> None:
    config, reference = case
    model = reference.layer if kind == "checkpoint" else functional(reference.layer)
    assert_gives_the_outputs(save(model, kind, tmp_path), config, reference, tmp_path)


# Where in files of larger models the encoder is.
PREFIXES = {
    ("classifier", "checkpoint"): "model/layer_with_weights-0",
    ("classifier", "weights"): "layer_with_weights-0",
    ("pretrainer", "checkpoint"): "encoder",
    ("pretrainer", "weights"): "encoder_network",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["classifier", "pretrainer"])
def test_encoders_inside_larger_models_give_their_outputs(name: str, kind: str, tmp_path: Path) -> None:
    from official.nlp.modeling import layers, models

    config = arguments({})
    reference = reference_of(config)
    encoder, items = reference.layer, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "classifier":
            model = models.BertClassifier(encoder, num_classes=3)
        else:
            # Its language-model head shares the word table.
            head = layers.MaskedLM(embedding_table=encoder.get_embedding_table(), name="cls/predictions")
            model = models.BertPretrainerV2(encoder_network=encoder, customized_masked_lm=head)
            inputs = {key: tf.constant(value) for key, value in small_inputs().items()}
            model({**inputs, "masked_lm_positions": tf.zeros((2, 1), tf.int32)})
            items = model.checkpoint_items
    path = save(model, kind, tmp_path, **items)
    prefix = assert_gives_the_outputs(path, config, reference, tmp_path)
    assert prefix == PREFIXES.get((name, kind), prefix)


@pytest.mark.parametrize("frozen", [["_embedding_layer"], ["_transformer_layers.0", "_embedding_norm_layer"], [""]])
def test_saved_models_with_frozen_layers_give_their_outputs(frozen: list[str], tmp_path: Path) -> None:
    """TensorFlow stores the variables of frozen layers last, under numbers."""
    config = arguments({})
    reference = reference_of(config)
    layers = []
    for path in frozen:
        layer: Any = reference.layer
        for step in filter(None, path.split(".")):
            layer = layer[int(step)] if step.isdigit() else getattr(layer, step)
        layer.trainable = False
        layers.append(layer)
    saved = save(functional(reference.layer), "saved_model", tmp_path)
    # Keras itself lists the weights of frozen layers last.
    for layer in layers:
        layer.trainable = True
    assert_gives_the_outputs(saved, config, reference, tmp_path)


def test_tensorflow_reads_our_weights_h5(case: Any, tmp_path: Path) -> None:
    config, reference = case
    encoder = sparse_mixer.SparseMixer(**config)
    encoder.set_weights(random_weights([weight.shape for weight in encoder.weights], seed=4))
    encoder.save(tmp_path / "ours.weights.h5")
    functional(reference.layer).load_weights(str(tmp_path / "ours.weights.h5"))
    for ours, theirs in zip(encoder.get_weights(), reference.layer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    outputs, expected = encoder(small_inputs()), reference(small_inputs())
    for name in OUTPUTS:
        assert_output_close(name, outputs[name], expected[name])
