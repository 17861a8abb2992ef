"""Layers behind the pooling, `Dense` of `sentence-transformers`. They compute in the core, row by row."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._native import CheckpointError
from sparse_mixer.checkpoints.opening import open_weights
from sparse_mixer.networks import SparseMixer
from sparse_mixer.text.tokenizer_files import read_json

Floats = npt.NDArray[np.float32]

# PyTorch's class of each activation; those of other modules are refused.
_ACTIVATIONS = {
    "Identity": "linear",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
    "Softsign": "softsign",
    "ELU": "elu",
}
_FEATURES = "sentence_embedding"


class Dense:
    """``activation(x W + b)``, perhaps with ``x`` or ``x R`` added.

    Attributes:
        in_features: Numbers per vector before it.
        out_features: Numbers per vector behind it.
    """

    def __init__(self, kernel: Floats, bias: Floats, activation: str, residual: Floats | str | None = None) -> None:
        """From its weights.

        Args:
            kernel: W, [in, out].
            bias: b, [out].
            activation: Our name of the activation.
            residual: R, [in, out]; ``"identity"`` for the vectors as they are, None for no such sum.
        """
        self._state = (kernel, bias, activation, residual)
        self.in_features, self.out_features = kernel.shape
        self._layer = _layer(kernel, bias, activation)
        nothing = np.zeros(self.out_features, np.float32)
        self._residual = _layer(residual, nothing, "linear") if isinstance(residual, np.ndarray) else residual

    def __call__(self, vectors: Floats, encoder: SparseMixer) -> Floats:
        """Vectors [N, out] of `vectors` [N, in], with the threads and instruction set of `encoder`."""
        outputs = self._layer.project(encoder.core, vectors)
        if self._residual is None:
            return outputs
        return outputs + (vectors if isinstance(self._residual, str) else self._residual.project(encoder.core, vectors))

    def weights(self) -> list[npt.NDArray[Any]]:
        """What it computes with, for comparisons."""
        return [np.asarray(part) for part in self._state if part is not None]

    def __getstate__(self) -> tuple[Any, ...]:
        return self._state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def read_dense(folder: str) -> Dense:
    """The layer in a folder of its own, ``config.json`` and ``model.safetensors``.

    Raises:
        CheckpointError: Damaged files, or a layer that is not computed.
        OSError: A file cannot be read.
    """
    file = os.path.join(folder, "config.json")
    config = read_json(file)
    activation = _activation(file, config)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, _FEATURES):
            raise CheckpointError(f"{file}: {key} {config[key]!r} is not supported, only {_FEATURES!r}")
    weights = _read(folder)
    kernel = weights.get("linear.weight")
    sizes = config.get("out_features"), config.get("in_features")
    if kernel is None or kernel.ndim != 2 or kernel.shape != sizes:
        found = None if kernel is None else list(kernel.shape)
        raise CheckpointError(f"{folder}: linear.weight: expected shape {list(sizes)} as in config.json, found {found}")
    bias = weights.get("linear.bias", np.zeros(len(kernel), np.float32))
    residual: Floats | str | None = None
    if config.get("use_residual"):
        residual = weights["residual.weight"].T if "residual.weight" in weights else "identity"
    added = kernel.T.shape
    if residual is not None:
        added = residual.shape if isinstance(residual, np.ndarray) else (len(kernel), len(kernel))
    if bias.shape != kernel.shape[:1] or added != kernel.T.shape:
        raise CheckpointError(f"{folder}: bias and residual do not fit linear.weight, {list(kernel.shape)}")
    return Dense(np.ascontiguousarray(kernel.T), bias, activation, residual)


def _activation(file: str, config: Mapping[str, Any]) -> str:
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    module, _, kind = str(name).rpartition(".")
    if not module.startswith("torch.nn") or kind not in _ACTIVATIONS:
        raise CheckpointError(f"{file}: activation_function {name!r} is not computed, only {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[kind]


def _read(folder: str) -> dict[str, Floats]:
    names = ("model.safetensors", "pytorch_model.bin")
    found = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    if not found:
        raise CheckpointError(f"{folder}: there is no model.safetensors with the weights of the Dense layer")
    with contextlib.closing(open_weights(os.path.join(folder, found[0]))) as file:
        read = {name: file.read(index) for index, (name, _, _) in enumerate(file.entries())}
    return {name: np.require(array, np.float32, ["C", "A"]) for name, array in read.items()}


def _layer(kernel: Floats, bias: Floats, activation: str) -> _native.Head:
    """A head of the core that computes the layer; behind an activation stands a product with ones, which keeps bits."""
    inputs, outputs = kernel.shape
    has_activation = activation != "linear"
    config = {
        "kind": "projection",
        "input_width": inputs,
        "inner_width": outputs if has_activation else 0,
        "inner_activation": {"name": activation},
        "num_classes": outputs,
        "input_dropout": 0.0,
        "dropout": 0.0,
        "inner_name": "dense",
        "output_name": "same",
    }
    head = _native.Head(json.dumps(config), json.dumps({"name": "constant", "value": 0.0}), 0)
    weights = [np.ascontiguousarray(kernel), bias]
    if has_activation:
        weights += [np.eye(outputs, dtype=np.float32), np.zeros(outputs, np.float32)]
    head.assign(list(range(len(weights))), weights)
    return head
