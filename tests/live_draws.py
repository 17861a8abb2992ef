"""Turns a case of `live_cases` into two encoders with equal weights, TensorFlow's and ours, and one input."""

from __future__ import annotations

import warnings
from typing import Any

import live_cases
import numpy as np
import reference_numpy
import sparse_mixer
import tensorflow_reference as reference
from closeness import ROUTER_MARGIN
from live_cases import Assignment

Array = np.ndarray[Any, Any]

# A float32 run that is further than this (relative to the largest output) from the float64 one is
# ill-conditioned, or took another turn in a router.
LARGEST_NOISE = 1e-3

_TABLE = "word_embeddings/embeddings"
_OWN_TABLE = "own_embeddings/embeddings"


class TableEmbedding:
    """An `embedding_layer` that knows nothing of TensorFlow."""

    def __init__(self, table: Array) -> None:
        self.embeddings = table

    def __call__(self, ids: Array) -> Array:
        return self.embeddings[ids]


class Draw:
    """Weights and inputs of one case for which rounding cannot change any router's choice.

    Attributes:
      reference: TensorFlow's encoder.
      inputs: the call's dictionary.
      weights: by name, without the encoder's.
      exact: the call in float64 by `reference_numpy`.
    """

    def __init__(self, case: Assignment, seed: list[int], largest_noise: float = LARGEST_NOISE) -> None:
        """Draws until a float32 run stays within `largest_noise` of the float64 one."""
        self.case = case
        self._largest_noise = largest_noise
        self._arguments = _reference_arguments(case)
        inputs = live_cases.draw_inputs(case, np.random.default_rng(seed))
        self.reference = reference.TensorFlowEncoder(self._arguments, inputs)
        names = [name.replace(_OWN_TABLE, _TABLE) for name in self.reference.weight_names]
        for attempt in range(200):
            rng = np.random.default_rng([*seed, attempt])
            self.inputs = live_cases.draw_inputs(case, rng)
            weights = live_cases.draw_weights(names, self.reference.weight_shapes, rng)
            if self._is_stable(weights, names):
                break
        else:
            raise AssertionError("rounding decides the routing in every draw")
        self.weights = dict(zip(names, weights, strict=True))
        self.reference.layer.set_weights(weights)

    def _is_stable(self, weights: list[Array], names: list[str]) -> bool:
        config = {name: self.case[name] for name in live_cases.CONSTRUCTOR_ARGUMENTS}
        call = (config, weights, names, self.inputs)
        with np.errstate(all="ignore"):
            self.exact = reference_numpy.encode(*call, training=self.case["training"])
            rounded = reference_numpy.encode(*call, training=self.case["training"], dtype=np.float32)
        pairs = zip(self.exact.routing, rounded.routing, strict=True)
        router_noise = max((np.abs(a.probabilities - b.probabilities).max() for a, b in pairs), default=0.0)
        noise = max(self.noise(rounded.named()).values())
        # With a single expert all probabilities are exactly 1: a tie, but not one that rounding decides.
        margin = self.exact.router_margin if self.case["num_experts"] > 1 else np.inf
        return margin >= max(ROUTER_MARGIN, 8 * router_noise) and noise <= self._largest_noise

    def noise(self, outputs: dict[str, Array]) -> dict[str, float]:
        """Distance of float32 outputs from the exact ones, per output, relative to its scale when above 1."""
        noise = {}
        for name, exact in self.exact.named().items():
            error = float(np.abs(outputs[name] - exact).max(initial=0))
            noise[name] = error / max(1.0, float(np.abs(exact).max(initial=0)))
        return noise

    def ours(self) -> sparse_mixer.SparseMixer:
        """Our encoder, built from the same arguments, with the same weights."""
        arguments = _our_arguments(self.case)
        if self.case["embedding_layer"] is not None and self.case["objects"] == "tensorflow":
            arguments["embedding_layer"] = self._arguments["embedding_layer"]
        elif self.case["embedding_layer"] is not None:
            arguments["embedding_layer"] = TableEmbedding(self._table())
        with warnings.catch_warnings():
            # Layers beyond the last are among the tested values.
            warnings.filterwarnings("ignore", message=r".*_layers", category=UserWarning)
            encoder = sparse_mixer.SparseMixer(**arguments)
        table = {} if _TABLE in self.weights else {_TABLE: self._table()}
        known = self.weights | table
        # A variable without a key is that of TensorFlow's own embedding layer.
        encoder.set_weights([known[getattr(weight, "key", _TABLE)] for weight in encoder.weights])
        return encoder

    def _table(self) -> Array:
        """The word table; TensorFlow has none when it was only called with embeddings."""
        width = self.case["embedding_width"] or self.case["hidden_size"]
        return self.weights.get(_TABLE, np.zeros((self.case["vocab_size"], width), np.float32))


def _given(case: Assignment) -> dict[str, Any]:
    names = live_cases.CONSTRUCTOR_ARGUMENTS
    return {name: case[name] for name in names if case[name] is not None}


def _reference_arguments(case: Assignment) -> dict[str, Any]:
    arguments = _given(case)
    if "mixing_mechanism" in arguments:
        arguments["mixing_mechanism"] = reference.mixing_mechanism(case["mixing_mechanism"])
    if "inner_activation" in arguments:
        # Strings fail in the reference's experts.
        arguments["inner_activation"] = reference.activation(case["inner_activation"])
    if "initializer" in arguments and case["objects"] == "tensorflow":
        arguments["initializer"] = reference.initializer(case["initializer"])
    if "embedding_layer" in arguments:
        width = case["embedding_width"] or case["hidden_size"]
        arguments["embedding_layer"] = reference.embedding_layer(case["vocab_size"], width)
    return arguments


def _our_arguments(case: Assignment) -> dict[str, Any]:
    arguments = _given(case)
    if case["semantics"] is not None:
        arguments["semantics"] = case["semantics"]
    if case["objects"] == "tensorflow":
        converters = {
            "mixing_mechanism": reference.mixing_mechanism,
            "inner_activation": reference.activation,
            "initializer": reference.initializer,
        }
    elif case["objects"] == "own":
        converters = {
            "mixing_mechanism": sparse_mixer.MixingMechanism,
            "inner_activation": lambda name: sparse_mixer.Activation(reference_numpy.ACTIVATIONS[name]),
            "initializer": sparse_mixer.initializers.resolve,
        }
    else:
        converters = {}
    return arguments | {name: convert(arguments[name]) for name, convert in converters.items() if name in arguments}
