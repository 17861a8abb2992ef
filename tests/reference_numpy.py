"""The encoder in plain NumPy, written from the formulas and sharing no code with the package.

It serves three ends: it is evaluated in float64 to tell how much of a difference between two
float32 implementations is rounding, it tells how close a router came to picking another token,
and it stands in for TensorFlow in the tests that run without it.

Letters: B batch, S sequence, W embedding width, H hidden, N heads, D head size, G groups,
T tokens per group, E experts, C expert capacity.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

METRIC_NAMES = (
    "unscaled_router_z_loss",
    "router_z_loss",
    "load_balancing_loss",
    "fraction_tokens_left_behind",
    "router_confidence",
    "expert_usage",
)

DEFAULTS: dict[str, Any] = {
    "hidden_size": 512,
    "num_layers": 14,
    "moe_layers": (5, 6, 7, 8),
    "attention_layers": (10, 11, 12, 13),
    "num_experts": 16,
    "train_capacity_factor": 1.0,
    "eval_capacity_factor": 1.0,
    "examples_per_group": 1.0,
    "mixing_mechanism": "linear",
    "use_fft": False,
    "num_attention_heads": 8,
    "max_sequence_length": 512,
    "type_vocab_size": 16,
    "inner_dim": 2048,
    "inner_activation": "gelu_tanh",
    "embedding_width": None,
    "norm_first": False,
}

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, np.zeros_like(x))


def _sigmoid(x: Array) -> Array:
    return np.exp(-_softplus(-x))


def softmax(x: Array) -> Array:
    """Over the last axis."""
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": _elu,
    "exponential": np.exp,
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2)).astype(x.dtype)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "linear": lambda x: x,
    "log_softmax": lambda x: np.log(softmax(x)),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * _elu(x)),
    "sigmoid": _sigmoid,
    "softmax": softmax,
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "swish": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
}
ACTIVATIONS["silu"] = ACTIVATIONS["swish"]


@dataclasses.dataclass(frozen=True)
class Routing:
    """What one MoE layer decided: every array is [G, T, E]."""

    probabilities: Array
    picked: Array
    margin: float
    """Smallest gap, over groups and experts, between the last picked and the first other token."""


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Results of one call; `metrics` is [MoE layers, 6] in the order of `METRIC_NAMES`."""

    sequence_output: Array
    pooled_output: Array
    encoder_outputs: list[Array]
    metrics: Array
    routing: list[Routing]

    @property
    def router_margin(self) -> float:
        """Smallest margin of all MoE layers; infinite without any."""
        return min((routing.margin for routing in self.routing), default=math.inf)

    def named(self) -> dict[str, Array]:
        """All output arrays under the names that golden files use."""
        named = {"sequence_output": self.sequence_output, "pooled_output": self.pooled_output}
        for layer, output in enumerate(self.encoder_outputs):
            named[f"encoder_output_{layer:02d}"] = output
        return named


def tokens_per_group(sequence_length: int, examples_per_group: float) -> int:
    """Group size: a product of doubles, cut off (not rounded) to an integer."""
    return int(sequence_length * examples_per_group)


def expert_capacity(capacity_factor: float, group_size: int, num_experts: int) -> int:
    """Tokens per expert and group: doubles from left to right, halves to the even neighbour."""
    return round(capacity_factor * group_size / num_experts)


def encode(
    config: Mapping[str, Any],
    weights: Sequence[Array],
    weight_names: Sequence[str],
    inputs: Mapping[str, Array | None],
    *,
    training: bool = False,
    dtype: type[np.floating[Any]] = np.float64,
) -> Outputs:
    """Runs the encoder without dropout.

    Args:
      config: constructor arguments; missing ones take the reference's defaults.
      weights: arrays in Keras order.
      weight_names: their names, in any of the forms "layer/word_embeddings/embeddings:0".
      inputs: the call's dictionary.
      training: picks the capacity factor.
      dtype: arithmetic of everything except the attention mask, which is float32 by definition.
    """
    return _Encoder(config, weights, weight_names, dtype).run(inputs, training)


class _Encoder:
    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Sequence[Array],
        weight_names: Sequence[str],
        dtype: type[np.floating[Any]],
    ) -> None:
        self.config = DEFAULTS | {k: v for k, v in config.items() if v is not None}
        self.dtype = dtype
        self.activation = ACTIVATIONS[self.config["inner_activation"]]
        self.weights = {
            name.removesuffix(":0"): np.asarray(weight, dtype)
            for name, weight in zip(weight_names, weights, strict=True)
        }

    def __getitem__(self, suffix: str) -> Array:
        return self.weights[self._name(suffix)]

    def _name(self, suffix: str) -> str:
        (name,) = [n for n in self.weights if n == suffix or n.endswith("/" + suffix)]
        return name

    def run(self, inputs: Mapping[str, Array | None], training: bool) -> Outputs:
        x, mask = self.embed(inputs)
        outputs, metrics, routing = [], [], []
        for layer in range(self.config["num_layers"]):
            x, router = self.block(layer, x, mask, training)
            outputs.append(x)
            if router is not None:
                metrics.append(router[0])
                routing.append(router[1])
        pooled = np.tanh(x[:, 0] @ self["pooler_transform/kernel"] + self["pooler_transform/bias"])
        table = np.array(metrics, np.float64).reshape(-1, len(METRIC_NAMES))
        return Outputs(x, pooled, outputs, table, routing)

    def embed(self, inputs: Mapping[str, Array | None]) -> tuple[Array, Array]:
        """Gives the stream [B, S, H] and the mask [B, S_mask]."""
        words = inputs.get("input_word_embeddings")
        if words is None:
            words = self["word_embeddings/embeddings"][inputs["input_word_ids"]]
        words = np.asarray(words).astype(np.float32).astype(self.dtype)
        types, mask = np.asarray(inputs["input_type_ids"]), np.asarray(inputs["input_mask"])
        dense = inputs.get("dense_inputs")
        if dense is not None:
            dense = np.asarray(dense).astype(np.float32).astype(self.dtype)
            words = np.concatenate([words, dense], axis=1)
            types = np.concatenate([types, np.asarray(inputs["dense_type_ids"])], axis=1)
            mask = np.concatenate([mask, np.asarray(inputs["dense_mask"])], axis=1)
        table = self["type_embeddings/embeddings"]
        one_hot = (types[..., None] == np.arange(len(table))).astype(self.dtype)
        x = words + self["position_embedding/embeddings"] + one_hot @ table
        x = self.layer_norm("embeddings/layer_norm", x)
        if x.shape[-1] != self.config["hidden_size"]:
            x = x @ self["embedding_projection/kernel"] + self["embedding_projection/bias"]
        return x, mask

    def layer_norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        scale = 1 / np.sqrt(variance + self.dtype(1e-12))
        return centred * scale * self[f"{name}/gamma"] + self[f"{name}/beta"]

    def block(
        self, layer: int, x: Array, mask: Array, training: bool
    ) -> tuple[Array, tuple[list[float], Routing] | None]:
        prefix = f"transformer/layer_{layer}"
        pre = self.config["norm_first"]
        query = self.layer_norm(f"{prefix}/self_attention_layer_norm", x) if pre else x
        if layer in self.config["attention_layers"]:
            mixed = self.attend(prefix, query, x, mask)
        else:
            mixed = self.mix(prefix, query)
        residual = x + mixed
        norm = "output_layer_norm" if pre else "self_attention_layer_norm"
        h = self.layer_norm(f"{prefix}/{norm}", residual)
        if layer in self.config["moe_layers"]:
            y, metrics, routing = self.route(f"{prefix}/moe", h, training)
            return (residual + y if pre else y), (metrics, routing)
        inner = self.activation(h @ self[f"{prefix}/intermediate/kernel"] + self[f"{prefix}/intermediate/bias"])
        y = inner @ self[f"{prefix}/output/kernel"] + self[f"{prefix}/output/bias"]
        if pre:
            return residual + y, None
        return self.layer_norm(f"{prefix}/output_layer_norm", y + h), None

    def mix(self, prefix: str, x: Array) -> Array:
        mechanism = str(getattr(self.config["mixing_mechanism"], "value", self.config["mixing_mechanism"]))
        if mechanism == "linear":
            sequence = self[f"{prefix}/linear_transform/seq_kernel"]
            return sequence @ x @ self[f"{prefix}/linear_transform/hidden_kernel"]
        # cos(s + h) = cos s cos h - sin s sin h, and likewise for sin(s + h).
        cos_s, sin_s = self._waves(x.shape[1])
        cos_h, sin_h = self._waves(x.shape[2])
        real: Array = cos_s @ x @ cos_h - sin_s @ x @ sin_h
        if mechanism == "fourier":
            return real
        return real + sin_s @ x @ cos_h + cos_s @ x @ sin_h

    def _waves(self, size: int) -> tuple[Array, Array]:
        angle = 2 * math.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
        return np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)

    def attend(self, prefix: str, query: Array, stream: Array, mask: Array) -> Array:
        def project(name: str, x: Array) -> Array:
            kernel = self[f"{prefix}/self_attention/{name}/kernel"]
            return np.einsum("bsh,hnd->bnsd", x, kernel) + self[f"{prefix}/self_attention/{name}/bias"][:, None]

        q, k, v = project("query", query), project("key", stream), project("value", stream)
        q = q * self.dtype(1 / math.sqrt(q.shape[-1]))
        scores = q @ k.transpose(0, 1, 3, 2)
        # The mask term is so large that its float32 sum rounds the score away, by definition.
        adder = ((1 - mask.astype(np.float32)) * np.float32(-1e9))[:, None, None, :]
        masked = (scores.astype(np.float32) + adder).astype(self.dtype)
        weights = softmax(np.where(adder == 0, scores, masked))
        kernel = self[f"{prefix}/self_attention/attention_output/kernel"]
        output: Array = np.einsum("bnsd,ndh->bsh", weights @ v, kernel)
        return output + self[f"{prefix}/self_attention/attention_output/bias"]

    def route(self, prefix: str, h: Array, training: bool) -> tuple[Array, list[float], Routing]:
        """The MoE sublayer: every expert of a group takes its C most probable tokens."""
        config = self.config
        num_experts = config["num_experts"]
        group_size = tokens_per_group(config["max_sequence_length"], config["examples_per_group"])
        factor = config["train_capacity_factor" if training else "eval_capacity_factor"]
        capacity = expert_capacity(factor, group_size, num_experts)
        tokens = h.reshape(-1, group_size, h.shape[-1])

        logits = tokens @ self[f"{prefix}/router/router_weights/kernel"]
        logits = logits + self[f"{prefix}/router/router_weights/bias"]
        probabilities = softmax(logits)
        # Ties are ties of the float32 probabilities; among equals the first token wins.
        order = np.argsort(-probabilities.astype(np.float32), axis=1, kind="stable")
        picked = np.zeros(probabilities.shape, bool)
        np.put_along_axis(picked, order[:, :capacity], True, axis=1)
        margin = math.inf
        if 0 < capacity < group_size:
            edge = np.take_along_axis(probabilities, order[:, capacity - 1 : capacity + 1], axis=1)
            margin = float(np.abs(edge[:, 0] - edge[:, 1]).min())

        output = np.zeros_like(tokens)
        for expert in range(num_experts):
            inner = tokens @ self[f"{prefix}/experts/intermediate/kernel"][expert]
            inner = self.activation(inner + self[f"{prefix}/experts/intermediate/bias"][expert])
            result = inner @ self[f"{prefix}/experts/output/kernel"][expert]
            result = result + self[f"{prefix}/experts/output/bias"][expert]
            output += np.where(picked[..., expert, None], probabilities[..., expert, None] * result, 0)

        peak = logits.max(axis=-1)
        log_sum = peak + np.log(np.exp(logits - peak[..., None]).sum(axis=-1))
        slots = len(tokens) * num_experts * capacity
        metrics = [
            float((log_sum**2).mean()),
            0.0,
            0.0,
            1 - float(picked.any(axis=-1).mean()) if capacity else math.inf,
            float(probabilities[picked].sum() / slots) if capacity else math.nan,
            1.0,
        ]
        return output.reshape(h.shape), metrics, Routing(probabilities, picked, margin)
