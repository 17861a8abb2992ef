"""Files of the reference's models into ours, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_reference as reference
from encoders import ARGUMENTS, WIDTH, small_inputs
from sparse_mixer import CheckpointError, SparseMixer, models

pytest.importorskip("h5py")

with reference._quiet():
    import tensorflow as tf
    from official.nlp.modeling import layers as official_layers
    from official.nlp.modeling import models as official_models

SIZES = {key: value for key, value in ARGUMENTS.items() if key != "seed"}
INPUTS = small_inputs(3)
POSITIONS = np.array([[1, 2], [0, 5], [3, 3]])
WITH_WORDS = {**INPUTS, "masked_lm_positions": POSITIONS}
HEADS = ((WIDTH, 2, "next_sentence"), (4, 3, "topic"))

Pair = Callable[[Any], Any]


def pretrainer(namespace: Any, head: Any, encoder: Any, **options: Any) -> Any:
    heads = [head(width, classes, name=name) for width, classes, name in HEADS]
    return namespace.BertPretrainerV2(encoder, "gelu", classification_heads=heads, **options)


# The reference's model and ours around an encoder.
KINDS: dict[str, tuple[Pair, Pair]] = {
    "classifier": (
        lambda encoder: official_models.BertClassifier(encoder, 3),
        lambda encoder: models.BertClassifier(encoder, 3, seed=0),
    ),
    "classifier with a layer of its own": (
        lambda encoder: official_models.BertClassifier(encoder, 3, use_encoder_pooler=False, head_name="mine"),
        lambda encoder: models.BertClassifier(encoder, 3, use_encoder_pooler=False, head_name="mine", seed=0),
    ),
    "token classifier": (
        lambda encoder: official_models.BertTokenClassifier(encoder, 4),
        lambda encoder: models.BertTokenClassifier(encoder, 4, seed=0),
    ),
    "span labeler": (
        lambda encoder: official_models.BertSpanLabeler(encoder),
        lambda encoder: models.BertSpanLabeler(encoder, seed=0),
    ),
    "pre-trainer": (
        lambda encoder: pretrainer(official_models, official_layers.ClassificationHead, encoder),
        lambda encoder: pretrainer(models, models.ClassificationHead, encoder, seed=0),
    ),
}


def build(kind: str) -> tuple[Any, Any]:
    """The reference's model, built, and ours with other weights."""
    inputs = WITH_WORDS if kind == "pre-trainer" else INPUTS
    with reference._quiet():
        theirs = KINDS[kind][0](reference.TensorFlowEncoder(SIZES, INPUTS).layer)
        theirs({name: tf.constant(array) for name, array in inputs.items()})
    return theirs, KINDS[kind][1](SparseMixer(**SIZES, seed=1))


def flat(outputs: Any) -> list[Any]:
    if isinstance(outputs, dict):
        return [outputs[name] for name in sorted(outputs) if name != "encoder_outputs"]
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def assert_same(kind: str, theirs: Any, ours: Any) -> None:
    inputs = WITH_WORDS if kind == "pre-trainer" else INPUTS
    with reference._quiet():
        expected = flat(theirs({name: tf.constant(array) for name, array in inputs.items()}))
    for found, wanted in zip(flat(ours(inputs)), expected, strict=True):
        np.testing.assert_allclose(found, np.asarray(wanted), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_the_reference(kind: str, tmp_path: Path) -> None:
    theirs, ours = build(kind)
    fresh = ours.get_weights()
    writers: dict[str, Callable[[str], Any]] = {
        "variables": theirs.save_weights,
        "items": lambda path: tf.train.Checkpoint(model=theirs, **theirs.checkpoint_items).write(path),
        "legacy.h5": theirs.save_weights,
        "keras.weights.h5": theirs.save_weights,
        "saved_model": lambda path: tf.saved_model.save(theirs, path),
    }
    for name, write in writers.items():
        path = str(tmp_path / name)
        with reference._quiet():
            write(path)
        ours.set_weights(fresh)
        ours.load_weights(path)
        for found, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=name)
    assert_same(kind, theirs, ours)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_files_for_the_reference(kind: str, tmp_path: Path) -> None:
    theirs, ours = build(kind)
    ours.save(tmp_path / "ours.weights.h5")
    with reference._quiet():
        theirs.load_weights(str(tmp_path / "ours.weights.h5"))
    assert_same(kind, theirs, ours)
    again = KINDS[kind][1](SparseMixer(**SIZES, seed=2))
    again.load_weights(tmp_path / "ours.weights.h5")
    for found, expected in zip(again.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    again.set_weights(theirs.get_weights())
    assert_same(kind, theirs, again)


def test_files_of_other_models_change_nothing(tmp_path: Path) -> None:
    theirs, _ = build("classifier")
    with reference._quiet():
        theirs.save_weights(str(tmp_path / "theirs.weights.h5"))
    for ours, named in [
        (
            models.BertClassifier(SparseMixer(**SIZES, seed=1), 2, seed=0),
            r"sentence_prediction/logits/kernel .*\(16, 2\)",
        ),
        (models.BertTokenClassifier(SparseMixer(**SIZES, seed=1), 3, seed=0), "predictions/transform/logits/kernel"),
        (models.BertSpanLabeler(SparseMixer(**SIZES, seed=1), seed=0), "span_labeling/"),
    ]:
        before = ours.get_weights()
        with pytest.raises(CheckpointError, match=f"do not fit this model's heads: {named}"):
            ours.load_weights(tmp_path / "theirs.weights.h5")
        for found, expected in zip(ours.get_weights(), before, strict=True):
            np.testing.assert_array_equal(found, expected)
