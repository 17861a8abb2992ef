"""Random small encoders for the tests of the Keras layer, TensorFlow's class and ours inside the same models."""

from __future__ import annotations

import random
from typing import Any

import live_cases
import numpy as np
import tensorflow_reference as reference
from live_draws import Draw

HEADS = ("classifier", "token classifier", "span labeler", "pretrainer")

# Rounding of the reference itself in the chosen draws; larger ones say nothing about 1e-5.
LARGEST_NOISE = 3e-6


def cases(count: int) -> list[dict[str, Any]]:
    """Cases of `live_cases` that models with symbolic inputs can have: ids and integer masks, all outputs."""
    rng = random.Random(5)
    chosen: list[dict[str, Any]] = []
    for case in live_cases.cases(400, seed=13):
        changes = {
            "with_dense_inputs": None,
            "words": "ids",
            "word_type": "int32",
            "type_ids": "int32",
            "mask": rng.choice(["ones", "tail", "random", "empty row", "odd integers"]),
            "semantics": None,
            "output_range": None,
            "embedding_layer": None,
            "output_dropout": 0.0,
            "attention_dropout": 0.0,
            "trainable": None,
            "objects": "tensorflow" if case["objects"] == "own" else case["objects"],
            "name": None,
        }
        candidate = {**case, **changes}
        if live_cases.is_valid(candidate):
            chosen.append(candidate)
        if len(chosen) == count:
            return chosen
    raise ValueError(f"only {len(chosen)} cases")


def draw(number: int, case: dict[str, Any]) -> Draw:
    """Weights and inputs of a case for which neither routing nor rounding decides."""
    return Draw(case, [99, number], largest_noise=LARGEST_NOISE)


def model(head: str, network: Any) -> Any:
    """The Model Garden's model around `network`, without dropout of its own."""
    from official.nlp.modeling import models

    if head == "classifier":
        return models.BertClassifier(network, num_classes=3, dropout_rate=0.0)
    if head == "token classifier":
        return models.BertTokenClassifier(network, num_classes=3, dropout_rate=0.0)
    if head == "span labeler":
        return models.BertSpanLabeler(network)
    # Kernels of BERT's size: where tanh is 1 but for its last bits, its slope is all rounding.
    initializer = reference.tf_keras.initializers.RandomNormal(stddev=0.02, seed=1)
    return models.BertPretrainerV2(network, mlm_activation="tanh", mlm_initializer=initializer)


def inputs_of(head: str, inputs: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The encoder's inputs and what the head takes besides."""
    if head != "pretrainer":
        return dict(inputs)
    batch, length = inputs["input_word_ids"].shape
    return {**inputs, "masked_lm_positions": rng.integers(0, length, (batch, 2)).astype(np.int32)}
