"""Heads and losses of the paper's JAX code, with our models on an encoder of paper semantics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from jax_cases import Array, JaxCase, assert_close, assert_gradients_close, jax_case, jax_names
from sparse_mixer import SparseMixer, models
from sparse_mixer.gradients import Gradients
from sparse_mixer.layers import Layer


def encoder_of(case: JaxCase) -> SparseMixer:
    """Without dropout: the JAX code was run deterministically, our losses are computed as in training."""
    return case.encoder(output_dropout=0.0, attention_dropout=0.0, expert_dropout=0.0)


def assign(head: Layer, weights: dict[str, Array]) -> None:
    """Gives a head the weights whose names end as the keys say."""
    by_ending = dict(weights)
    for variable in head.weights:
        ending = next(ending for ending in by_ending if variable.key.endswith(ending))
        variable.assign(by_ending.pop(ending))
    assert not by_ending


def projection_weights(case: JaxCase, prefix: str = "params/") -> dict[str, Array]:
    return {
        "logits/kernel": np.ascontiguousarray(case.data[prefix + "classification/output_kernel"].T),
        "logits/bias": case.data[prefix + "classification/output_bias"],
    }


def masked_lm_weights(case: JaxCase, prefix: str = "params/") -> dict[str, Array]:
    part = case.part(prefix)
    return {
        "dense/kernel": part["predictions_dense/kernel"],
        "dense/bias": part["predictions_dense/bias"],
        "gamma": part["predictions_layer_norm/scale"],
        "beta": part["predictions_layer_norm/bias"],
        "output_bias/bias": part["predictions_output/output_bias"],
    }


def expected_head_gradients(head: Layer, weights: dict[str, Array]) -> dict[str, Array]:
    return {
        variable.key: next(value for ending, value in weights.items() if variable.key.endswith(ending))
        for variable in head.weights
    }


def pretrainer(case: JaxCase) -> tuple[models.BertPretrainerV2, dict[str, Any]]:
    head = models.ClassificationHead(0, 2, use_encoder_pooler=True)
    model = models.BertPretrainerV2(encoder_of(case), "gelu_tanh", classification_heads=[head], seed=0)
    assign(model.masked_lm, masked_lm_weights(case))
    assign(model.classification_heads[0], projection_weights(case))
    batch = case.inputs | {
        "masked_lm_positions": case.data["inputs/masked_lm_positions"],
        "masked_lm_ids": case.data["inputs/masked_lm_labels"],
        "masked_lm_weights": case.data["inputs/masked_lm_weights"],
        "next_sentence_labels": case.data["inputs/next_sentence_labels"],
    }
    return model, batch


@pytest.mark.parametrize("name", jax_names("pretraining"))
def test_pretraining(name: str) -> None:
    case = jax_case(name)
    model, batch = pretrainer(case)
    outputs = model(batch)
    vocab_size = case.config["vocab_size"]
    assert_close("mlm_logits", outputs["mlm_logits"].reshape(-1, vocab_size), case.data["outputs/masked_lm_logits"])
    assert_close("next_sentence", outputs["next_sentence"], case.data["outputs/next_sentence_logits"])

    metrics, gradients = model.loss_and_gradients(batch, seed=0)
    losses = case.part("losses/")
    means = metrics.means()
    assert metrics["mlm_loss"] == pytest.approx(
        (float(losses["masked_lm_loss"]), float(losses["masked_lm_normalization"])), rel=1e-4
    )
    assert metrics["next_sentence_loss"][0] == pytest.approx(float(losses["next_sentence_loss"]), rel=1e-4)
    assert metrics["mlm_accuracy"][0] == pytest.approx(float(losses["masked_lm_correct"]))
    assert metrics["next_sentence_accuracy"][0] == pytest.approx(float(losses["next_sentence_correct"]))
    assert means["loss"] == pytest.approx(float(losses["total"]), rel=1e-4)

    expected = case.expected_gradients(model.encoder, "grads/")
    expected |= expected_head_gradients(model.masked_lm, masked_lm_weights(case, "grads/"))
    expected |= expected_head_gradients(model.classification_heads[0], projection_weights(case, "grads/"))
    assert_gradients_close(gradients, expected)


@pytest.mark.parametrize("name", jax_names("classification"))
def test_classification_and_regression(name: str) -> None:
    case = jax_case(name)
    classes = case.config["n_classes"]
    model = models.BertClassifier(encoder_of(case), classes, dropout_rate=0.0, seed=0)
    assign(model.heads["sentence_prediction"], projection_weights(case))
    assert_close("logits", model(case.inputs), case.data["outputs/logits"])

    labels = case.data["inputs/labels"]
    metrics, gradients = model.loss_and_gradients((case.inputs, labels), seed=0)
    losses = case.part("losses/")
    batch_loss, count = float(losses["batch_loss"]), float(losses["num_labels"])
    ours = metrics["task_loss"][0]
    assert count == len(labels)
    # Classification upstream: the mean, divided by the number of examples once more. Regression: the mean.
    upstream = ours / count**2 if classes > 1 else ours / count
    assert upstream == pytest.approx(batch_loss / count, rel=1e-4)
    total = float(model.encoder.aux_losses["total"])
    assert upstream + total == pytest.approx(float(losses["total"]), rel=1e-4)
    if not case.config["grads"]:
        return
    _, vjp = model.encoder.vjp(case.inputs)
    auxiliary: Gradients = vjp({})
    divided = {
        key: value / count + (auxiliary[key] * (1 - 1 / count) if key in auxiliary else 0)
        for key, value in gradients.items()
    }
    expected = case.expected_gradients(model.encoder, "grads/")
    expected |= expected_head_gradients(model.heads["sentence_prediction"], projection_weights(case, "grads/"))
    assert_gradients_close(divided, expected)
