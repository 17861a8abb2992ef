"""The paper's encoder in plain NumPy and float64, one block at a time, written from the formulas of the JAX code.

Which token goes to which expert is given: near ties, rounding may decide otherwise, and `test_routers.py` tests the
decision by itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def softmax(x: Array) -> Array:
    e: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gelu(x: Array) -> Array:
    """The tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class PaperEncoder:
    """The formulas, with the weights of an encoder of paper semantics.

    Args:
        arguments: The constructor's arguments; those that have no default in the paper must be there.
        weights: Arrays by Keras name.
    """

    def __init__(self, arguments: dict[str, Any], weights: dict[str, Array]) -> None:
        self.arguments = arguments
        self.weights = {name: values.astype(np.float64) for name, values in weights.items()}

    def __getitem__(self, name: str) -> Array:
        return self.weights[name]

    def dense(self, name: str, x: Array) -> Array:
        return x @ self[f"{name}/kernel"] + self[f"{name}/bias"]

    def norm(self, name: str, x: Array) -> Array:
        mean = x.mean(axis=-1, keepdims=True)
        variance = np.maximum(0, ((x - mean) ** 2).mean(axis=-1, keepdims=True))
        return (x - mean) / np.sqrt(variance + 1e-12) * self[f"{name}/gamma"] + self[f"{name}/beta"]

    def embed(self, ids: Array, types: Array) -> Array:
        x = self["word_embeddings/embeddings"][ids] + self["type_embeddings/embeddings"][types]
        x = x + self["position_embedding/embeddings"][: ids.shape[1]]
        return self.dense("embedding_projection", self.norm("embeddings/layer_norm", x))

    def pool(self, x: Array) -> Array:
        return np.tanh(self.dense("pooler_transform", x[:, 0]))

    def block(self, layer: int, x: Array, real: Array, indices: Array | None) -> Array:
        """Block number `layer` of the stream `x` [B, S, H].

        Args:
            layer: Which block.
            x: What it reads.
            real: Where there is no padding, [B, S].
            indices: Tokens [G, E, slots] of a mixture of experts, -1 in empty slots.
        """
        prefix = f"transformer/layer_{layer}"
        attends = layer in self.arguments["attention_layers"]
        mixed = self.attend(f"{prefix}/self_attention", x, real) if attends else self.mix(prefix, x)
        h = self.norm(f"{prefix}/self_attention_layer_norm", x + mixed)
        if indices is None:
            fed = self.dense(f"{prefix}/output", gelu(self.dense(f"{prefix}/intermediate", h)))
        else:
            fed = self.mixture(f"{prefix}/moe", h, indices)
        return self.norm(f"{prefix}/output_layer_norm", h + fed)

    def attend(self, name: str, x: Array, real: Array) -> Array:
        q, k, v = (
            np.einsum("bsh,hnd->bnsd", x, self[f"{name}/{part}/kernel"]) + self[f"{name}/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        scores = q / math.sqrt(q.shape[-1]) @ k.transpose(0, 1, 3, 2)
        visible = real[:, None, :, None] & real[:, None, None, :]
        weights = softmax(np.where(visible, scores, -1e30))
        out: Array = np.einsum("bnsd,ndh->bsh", weights @ v, self[f"{name}/attention_output/kernel"])
        return out + self[f"{name}/attention_output/bias"]

    def mix(self, prefix: str, x: Array) -> Array:
        _, seq, hidden = x.shape
        mechanism = self.arguments["mixing_mechanism"]
        if mechanism == "linear":
            name = f"{prefix}/linear_transform"
            return self[f"{name}/seq_kernel"] @ x @ self[f"{name}/hidden_kernel"]
        if mechanism in ("circulant", "toeplitz"):
            along_seq, along_hidden = (
                self.matrix(mechanism, self[f"{prefix}/{mechanism}_transform/{axis}_kernel"], size)
                for axis, size in (("seq", seq), ("hidden", hidden))
            )
            return along_seq @ x @ along_hidden.T
        transform = np.fft.fft2(x)
        return transform.real - (transform.imag if mechanism == "hartley" else 0)

    @staticmethod
    def matrix(mechanism: str, values: Array, size: int) -> Array:
        p, q = np.indices((size, size))
        return values[(p - q) % size] if mechanism == "circulant" else values[size - 1 + q - p]

    def probabilities(self, name: str, h: Array) -> Array:
        return softmax(self.dense(f"{name}/router/router_weights", h))

    def mixture(self, name: str, h: Array, indices: Array) -> Array:
        groups, experts, _ = indices.shape
        tokens = h.reshape(groups, -1, h.shape[-1])
        p = self.probabilities(name, tokens)
        out = np.zeros_like(tokens)
        for group, expert, slot in np.argwhere(indices >= 0):
            token = indices[group, expert, slot]
            worker = (group * experts + expert) // groups if self.arguments["group_mixup"] else expert
            inner = tokens[group, token] @ self[f"{name}/experts/intermediate/kernel"][worker]
            inner = gelu(inner + self[f"{name}/experts/intermediate/bias"][worker, 0])
            answer = inner @ self[f"{name}/experts/output/kernel"][worker]
            out[group, token] += p[group, token, expert] * (answer + self[f"{name}/experts/output/bias"][worker, 0])
        return out.reshape(h.shape)
