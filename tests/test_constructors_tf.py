"""Constructors of the models: the reference's arguments in its order, and its layers as heads."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import tensorflow_reference as reference
from encoders import ARGUMENTS, WIDTH, small_inputs
from sparse_mixer import SparseMixer, models

with reference._quiet():
    import tensorflow as tf
    from official.nlp.modeling import layers as official_layers
    from official.nlp.modeling import models as official_models

SIZES = {key: value for key, value in ARGUMENTS.items() if key != "seed"}
INPUTS = small_inputs(3)


def tensors(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: tf.constant(array) for name, array in inputs.items()}


def encoders() -> tuple[Any, SparseMixer]:
    """The reference encoder and ours with its weights."""
    theirs = reference.TensorFlowEncoder(SIZES, INPUTS).layer
    ours = SparseMixer(**SIZES, seed=1)
    ours.set_weights(theirs.get_weights())
    return theirs, ours


@pytest.mark.parametrize("name", ["BertClassifier", "BertTokenClassifier", "BertSpanLabeler", "BertPretrainerV2"])
def test_arguments_and_their_order(name: str) -> None:
    theirs = inspect.signature(inspect.unwrap(getattr(official_models, name).__init__)).parameters
    ours = inspect.signature(getattr(models, name).__init__).parameters
    expected = {key: p for key, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    positional = [key for key, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(expected)
    assert "name" in ours
    for key, parameter in expected.items():
        if parameter.default is not parameter.empty and parameter.default is not None:
            assert ours[key].default == parameter.default, key


def test_a_head_of_the_reference() -> None:
    """Its settings and, since it is built, its weights."""
    theirs, ours = encoders()
    with reference._quiet():
        head = official_layers.ClassificationHead(5, 3, cls_token_idx=2, initializer="he_normal", name="mine")
        expected = official_models.BertClassifier(theirs, 7, use_encoder_pooler=False, cls_head=head)
        outputs = expected(tensors(INPUTS)).numpy()
    model = models.BertClassifier(ours, 7, use_encoder_pooler=False, cls_head=head)
    np.testing.assert_allclose(model(INPUTS), outputs, atol=1e-5)
    again = models.BertClassifier.from_config(ours, model.get_config())
    again.set_weights(expected.get_weights())
    np.testing.assert_allclose(again(INPUTS), outputs, atol=1e-5)
    for head, arguments, message in [
        (models.ClassificationHead(5, 3), {}, "cls_head: inner_dim is for sequence_output"),
        (models.ClassificationHead(0, 3), {"use_encoder_pooler": False}, "cls_head: .*use BertTokenClassifier"),
    ]:
        with pytest.raises(ValueError, match=message):
            models.BertClassifier(ours, 3, cls_head=head, **arguments)
    with pytest.raises(TypeError, match="cls_head: expected a ClassificationHead, got int"):
        models.BertClassifier(ours, 3, cls_head=3)


def test_a_head_without_a_layer_of_its_own() -> None:
    _, ours = encoders()
    with reference._quiet():
        head = official_layers.ClassificationHead(0, 3, dropout_rate=0.2, name="mine")
    model = models.BertClassifier(ours, 7, cls_head=head)
    assert model(INPUTS).shape == (3, 3)
    assert [weight.key for weight in model.classifier.weights] == ["mine/logits/kernel", "mine/logits/bias"]
    assert model.head_name == "mine"


def test_layers_of_a_pretrainer() -> None:
    theirs, ours = encoders()
    words = {**INPUTS, "masked_lm_positions": np.array([[1, 2], [0, 5], [3, 3]])}
    with reference._quiet():
        masked_lm = official_layers.MaskedLM(theirs.get_embedding_table(), activation="gelu", name="words")
        head = official_layers.ClassificationHead(WIDTH, 2, name="pairs")
        expected = official_models.BertPretrainerV2(
            theirs, classification_heads=[head], customized_masked_lm=masked_lm, name="mine"
        )
        outputs = expected(tensors(words))
    model = models.BertPretrainerV2(
        ours, classification_heads=[head], customized_masked_lm=masked_lm, name="mine", seed=0
    )
    found = model(words)
    for name in ("mlm_logits", "pairs", "sequence_output"):
        np.testing.assert_allclose(found[name], outputs[name].numpy(), atol=2e-5, err_msg=name)
    assert model.encoder_network is ours
    assert set(model.checkpoint_items) == {"encoder", "masked_lm"}
    with reference._quiet():
        likely = official_layers.MaskedLM(theirs.get_embedding_table(), output="predictions")
    with pytest.raises(ValueError, match="customized_masked_lm: expected one that gives logits"):
        models.BertPretrainerV2(ours, customized_masked_lm=likely)
    with pytest.raises(TypeError, match="customized_masked_lm: expected the Model Garden's MaskedLM, got"):
        models.BertPretrainerV2(ours, customized_masked_lm=head)
