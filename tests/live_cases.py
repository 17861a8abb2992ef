"""Random small encoders that together try every pair of argument values.

`PARAMETERS` lists values for every constructor argument and for the ways to call. `cases()` draws
assignments until every pair of values of two parameters has been together in one (pairwise coverage),
then goes on with plain random ones. Everything follows from one seed, so a failing case can be run
again by its number.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from reference_numpy import expert_capacity, tokens_per_group

Array = np.ndarray[Any, Any]
Assignment = dict[str, Any]

# `None` stands for "not given" where the argument has a default.
PARAMETERS: dict[str, tuple[Any, ...]] = {
    # Constructor arguments, in the reference's order.
    "vocab_size": (5, 37, 101),
    "hidden_size": (12, 18, 30),
    "num_layers": (1, 2, 3, 7),
    "moe_layers": (None, (), (0,), [1], (0, 2), frozenset(range(7))),
    "attention_layers": (None, (), [0], (1,), range(7), np.array([2, 1])),
    "num_experts": (1, 2, 3, 4, 8),
    "train_capacity_factor": (None, 0.5, 1.25, 2.0),
    "eval_capacity_factor": (None, 0.05, 0.54, 1.5),
    "examples_per_group": (None, 0.5, 1.5, 2.0),
    "mixing_mechanism": (None, "linear", "fourier", "hartley"),
    "use_fft": (None, True),
    "num_attention_heads": (1, 2, 3, 6),
    "max_sequence_length": (8, 11, 14, 20),
    "type_vocab_size": (1, 2, 16),
    "inner_dim": (16, 33),
    "inner_activation": (
        *(None, "elu", "exponential", "gelu", "hard_sigmoid", "leaky_relu", "linear", "log_softmax"),
        *("mish", "relu", "relu6", "selu", "sigmoid", "softmax", "softplus", "softsign", "swish", "tanh"),
    ),
    "output_dropout": (0.0, 0.1),
    "attention_dropout": (0.0, 0.3),
    "initializer": (
        *(None, "glorot_uniform", "he_normal", "zeros", "orthogonal"),
        {"class_name": "RandomUniform", "config": {"minval": -0.1, "maxval": 0.1, "seed": None}},
    ),
    "output_range": (None, 1, 5),
    "embedding_width": (None, 9, 40),
    "embedding_layer": (None, "own"),
    "norm_first": (None, True),
    "with_dense_inputs": (None, True),
    "export_metrics": (None, False),
    "name": (None, "encoder"),
    "trainable": (None, False),
    # How names are handed to the package: as strings, as its own objects, as TensorFlow's.
    "objects": ("strings", "own", "tensorflow"),
    "semantics": (None, "keras_strict"),
    # The call.
    "batch": (1, 2, 3, 4),
    "words": ("ids", "embeddings", "ids+dense", "embeddings+dense", "all dense"),
    "word_type": ("int32", "int64", "float32", "float64"),
    "mask": ("ones", "tail", "random", "empty row", "float", "bool", "odd integers"),
    "type_ids": ("int32", "int64", "int8", "uint8", "outside"),
    "training": (False, True),
}

CONSTRUCTOR_ARGUMENTS = tuple(itertools.takewhile(lambda name: name != "objects", PARAMETERS))

# Pairs that no call can have: dropout is random, only "keras_strict" accepts foreign type ids, and ids
# are integers while embeddings are not.
IMPOSSIBLE_PAIRS = {
    (("output_dropout", 0.1), ("training", True)),
    (("semantics", None), ("type_ids", "outside")),
    *((("words", w), ("word_type", t)) for w in ("ids", "ids+dense") for t in ("float32", "float64")),
    *(
        (("words", w), ("word_type", t))
        for w in ("embeddings", "embeddings+dense", "all dense")
        for t in ("int32", "int64")
    ),
}

_Pair = tuple[tuple[str, Any], tuple[str, Any]]


def layers_of(case: Assignment, argument: str) -> list[int]:
    """The layers that `moe_layers` or `attention_layers` really selects."""
    defaults = {"moe_layers": (5, 6, 7, 8), "attention_layers": (10, 11, 12, 13)}
    chosen = defaults[argument] if case[argument] is None else case[argument]
    return [layer for layer in range(case["num_layers"]) if layer in chosen]


def is_valid(case: Assignment) -> bool:
    """Whether the reference computes this case, and always the same."""
    attends = bool(layers_of(case, "attention_layers"))
    if case["training"] and (case["output_dropout"] or (attends and case["attention_dropout"])):
        return False
    if case["type_ids"] == "outside" and case["semantics"] != "keras_strict":
        return False
    if case["word_type"].startswith("int") != case["words"].startswith("ids"):
        return False
    moe = layers_of(case, "moe_layers")
    if not moe:
        return True
    # Tokens that a post-norm MoE layer leaves behind are equal, and attention keeps them so: with half of
    # them left behind no draw is free of ties. The golden case `ties_of_left_behind_tokens` is about them.
    equal_rows = not case["norm_first"] and {i + 1 for i in moe} & {*moe} & {*layers_of(case, "attention_layers")}
    factor = case["train_capacity_factor" if case["training"] else "eval_capacity_factor"]
    if equal_rows and (factor or 1.0) < 0.6:
        return False
    group = tokens_per_group(case["max_sequence_length"], case["examples_per_group"] or 1.0)
    factors = (case["train_capacity_factor"], case["eval_capacity_factor"])
    return (
        (case["examples_per_group"] or 1.0) <= case["batch"]
        and case["batch"] * case["max_sequence_length"] % group == 0
        and all(expert_capacity(f or 1.0, group, case["num_experts"]) <= group for f in factors)
    )


def pairs_of(case: Assignment) -> Iterator[_Pair]:
    """The pairs of values that `case` tries."""
    return itertools.combinations(((name, _key(case[name])) for name in PARAMETERS), 2)


def _key(value: Any) -> Any:
    """A hashable form of a parameter value."""
    return repr(value) if isinstance(value, (list, dict, np.ndarray)) else value


def all_pairs() -> set[_Pair]:
    """Every pair of values that some valid case can have."""
    pairs = {
        ((a, _key(x)), (b, _key(y)))
        for a, b in itertools.combinations(PARAMETERS, 2)
        for x in PARAMETERS[a]
        for y in PARAMETERS[b]
    }
    return pairs - {pair for pair in pairs if pair in IMPOSSIBLE_PAIRS or pair[::-1] in IMPOSSIBLE_PAIRS}


@functools.cache
def cases(count: int, seed: int = 0) -> list[Assignment]:
    """At least `count` valid cases which cover all pairs."""
    rng = random.Random(seed)
    # A dict, because a set of strings has another order in every process.
    missing = dict.fromkeys(sorted(all_pairs(), key=repr))
    values = {name: {_key(v): v for v in levels} for name, levels in PARAMETERS.items()}
    chosen: list[Assignment] = []
    while missing or len(chosen) < count:
        candidates = list(missing)
        best, best_new = None, -1
        for _ in range(30 if missing else 1):
            fixed = rng.choice(candidates) if candidates else ()
            case = _complete({name: values[name][key] for name, key in fixed}, rng)
            new = sum(pair in missing for pair in pairs_of(case))
            if new > best_new:
                best, best_new = case, new
        assert best is not None
        for pair in pairs_of(best):
            missing.pop(pair, None)
        chosen.append(best)
    return chosen


def _complete(fixed: Assignment, rng: random.Random) -> Assignment:
    """A valid case with the `fixed` values; the others are random."""
    for _ in range(20_000):
        case = {name: rng.choice(levels) for name, levels in PARAMETERS.items()} | fixed
        if is_valid(case):
            return case
    raise ValueError(f"no valid case has {fixed}")


def draw_weights(names: list[str], shapes: list[tuple[int, ...]], rng: np.random.Generator) -> list[Array]:
    """Random weights of the scale of a trained model; biases and norms are not left at 0 and 1."""
    weights = []
    for name, shape in zip(names, shapes, strict=True):
        leaf = name.rsplit("/", 1)[-1]
        noise = rng.standard_normal(shape).astype(np.float32)
        if leaf == "gamma":
            weights.append(1 + 0.1 * noise)
        elif leaf in ("beta", "bias"):
            weights.append(0.1 * noise)
        elif leaf == "embeddings":
            weights.append(0.5 * noise)
        elif "/router/" in name:
            weights.append(noise / np.sqrt(shape[0], dtype=np.float32))
        elif "attention_output" in name:
            weights.append(noise / np.sqrt(shape[0] * shape[1], dtype=np.float32))
        elif "/experts/" in name:
            weights.append(noise / np.sqrt(shape[1], dtype=np.float32))
        else:
            weights.append(noise / np.sqrt(shape[0], dtype=np.float32))
    return weights


def draw_inputs(case: Assignment, rng: np.random.Generator) -> dict[str, Array]:
    """The dictionary of one call."""
    batch, length = case["batch"], case["max_sequence_length"]
    width = case["embedding_width"] or case["hidden_size"]
    kind = "int32" if case["type_ids"] == "outside" else case["type_ids"]
    types = rng.integers(0, case["type_vocab_size"], (batch, length)).astype(kind)
    if case["type_ids"] == "outside":
        types[0, :2] = -1, case["type_vocab_size"]
    mask = draw_mask(case["mask"], batch, length, rng)
    split = {"all dense": 0, "ids": length, "embeddings": length}.get(case["words"], length - length // 3)

    inputs: dict[str, Array] = {"input_mask": mask[:, :split], "input_type_ids": types[:, :split]}
    if case["words"].startswith("ids"):
        ids = rng.integers(0, case["vocab_size"], (batch, split))
        inputs["input_word_ids"] = ids.astype(case["word_type"])
    else:
        rows = 0.5 * rng.standard_normal((batch, split, width))
        inputs["input_word_embeddings"] = rows.astype(case["word_type"])
    if split < length:
        inputs["dense_inputs"] = 0.5 * rng.standard_normal((batch, length - split, width)).astype(np.float32)
        inputs["dense_mask"] = mask[:, split:]
        inputs["dense_type_ids"] = types[:, split:]
    return inputs


def draw_mask(kind: str, batch: int, length: int, rng: np.random.Generator) -> Array:
    """A mask [batch, length]; every row but that of "empty row" has a position to look at."""
    lengths = rng.integers(1, length + 1, (batch, 1))
    tail = (np.arange(length) < lengths).astype(np.int32)
    if kind == "ones":
        return np.ones_like(tail)
    if kind == "random":
        mask = rng.integers(0, 2, (batch, length), dtype=np.int32)
        mask[:, 0] = 1
        return mask
    if kind == "empty row":
        tail[0] = 0
        return tail
    if kind == "float":
        return np.where(tail == 1, 1.0, rng.choice([0.0, 0.25, 0.5], (batch, length))).astype(np.float32)
    if kind == "bool":
        return tail.astype(bool)
    if kind == "odd integers":
        return rng.choice(np.array([-1, 0, 1, 2], np.int32), (batch, length))
    return tail
