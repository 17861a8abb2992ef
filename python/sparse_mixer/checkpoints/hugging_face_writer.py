"""Writing encoders and models as folders that the `transformers` package reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.encoder import Encoder
from sparse_mixer.checkpoints.hugging_face import ACTIVATIONS
from sparse_mixer.layers import MixingMechanism

Array = npt.NDArray[np.float32]

FILE_FORMAT = "huggingface"
"""The `file_format` of such folders."""

_CLASSES = {"bert": "BertModel", "electra": "ElectraModel", "fnet": "FNetModel"}


def save_hugging_face(
    encoder: Encoder, folder: str, *, architecture: str | None = None, heads: Mapping[str, Array] | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into `folder`, which is made if it is not there.

    Args:
        encoder: A BERT, an ELECTRA (embeddings of another width) or an FNet.
        folder: The folder.
        architecture: That package's class; None for the encoder's own.
        heads: Tensors of heads by that package's names, for a BERT.

    Raises:
        ValueError: The encoder is something else; the message says what.
        OSError: A file cannot be written.
    """
    kind = _kind(encoder)
    if heads is not None and kind != "bert":
        raise ValueError(f"file_format: heads are written beside a BERT, and this encoder is a {_CLASSES[kind]}")
    config = _config(encoder, kind, architecture or _CLASSES[kind])
    tensors = dict(_tensors(encoder, kind, "" if heads is None else "bert."))
    tensors |= {} if heads is None else heads
    if "classifier.bias" in tensors:
        # That package has the number of classes from here.
        labels = [f"LABEL_{number}" for number in range(len(tensors["classifier.bias"]))]
        config["id2label"] = dict(enumerate(labels))
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    os.makedirs(folder, exist_ok=True)
    _replace(os.path.join(folder, "model.safetensors"), _safetensors(tensors))
    text = json.dumps(config, indent=2) + "\n"
    _replace(os.path.join(folder, "config.json"), iter([text.encode()]))


def _kind(encoder: Encoder) -> str:
    """``model_type`` of what computes the same."""
    a = encoder.arguments
    attending, names = len(a.layers_within("attention_layers")), list(ACTIVATIONS.values())
    activation = a.inner_activation.get("name") if isinstance(a.inner_activation, dict) else None
    projects = a.semantics == "paper" if a.project_embeddings is None else a.project_embeddings
    fourier = attending == 0 and a.mixing_mechanism is MixingMechanism.FOURIER
    reasons = {
        "it has experts": bool(a.layers_within("moe_layers")),
        "it has layers that neither all attend nor all mix by Fourier transforms": attending != a.num_layers
        and not fourier,
        f"its activation is none of {sorted(set(names))}": activation not in names,
        "it normalises before sublayers (norm_first)": a.norm_first,
        "it has an own embedding_layer": a.embedding_layer is not None,
        "it has an output_range": a.output_range is not None,
        "it has a pad_id": attending > 0 and a.padding_id() not in (None, -1),
        "its embeddings are projected to their own width": attending > 0 and projects and a.width() == a.hidden_size,
        "its embeddings are not projected": fourier and not projects,
        "its embeddings have another width": fourier and a.width() != a.hidden_size,
        "it has no pooler": fourier and not a.with_pooler,
        "it has a pooler, which an ELECTRA has not": attending > 0 and a.width() != a.hidden_size and a.with_pooler,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"file_format: {FILE_FORMAT!r} has no model for this encoder: {reason}")
    if fourier:
        return "fnet"
    return "bert" if a.width() == a.hidden_size else "electra"


def _config(encoder: Encoder, kind: str, architecture: str) -> dict[str, Any]:
    a = encoder.arguments
    activation: Any = a.inner_activation
    config: dict[str, Any] = {
        "model_type": kind,
        "architectures": [architecture],
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "num_hidden_layers": a.num_layers,
        "intermediate_size": a.inner_dim,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation["name"]),
        "max_position_embeddings": a.max_sequence_length,
        "type_vocab_size": a.type_vocab_size,
        "hidden_dropout_prob": a.output_dropout,
        "layer_norm_eps": a.layer_norm_epsilon,
        "torch_dtype": "float32",
    }
    if kind != "fnet":
        config["num_attention_heads"] = a.num_attention_heads
        config["attention_probs_dropout_prob"] = a.attention_dropout
        config["position_embedding_type"] = "absolute"
    if kind == "electra":
        config["embedding_size"] = a.width()
    return config


def _tensors(encoder: Encoder, kind: str, prefix: str) -> Iterator[tuple[str, Array]]:
    """Name and values of the encoder's weights."""
    spelling = {"fnet": ("fourier.", "embeddings.projection"), "electra": ("embeddings_project",), "bert": ()}[kind]
    for variable in encoder.all_variables:
        names = _native.foreign_names("huggingface", variable.key, list(variable.shape))
        own = [name for name in names if any(part in name for part in spelling)]
        yield prefix + (own or names)[0], to_pytorch(variable.key, variable.numpy())


def to_pytorch(key: str, values: Array) -> Array:
    """A weight in PyTorch's layout: matrices as [outputs, inputs], heads of attention flattened."""
    if not key.endswith("/kernel"):
        return values if values.ndim == 1 or "embeddings" in key else values.reshape(-1)
    inputs = math.prod(values.shape[:-1]) if key.endswith("attention_output/kernel") else values.shape[0]
    return np.ascontiguousarray(values.reshape(inputs, -1).T)


def _safetensors(tensors: Mapping[str, Array]) -> Iterator[bytes]:
    """The pieces of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for values in tensors.values():
        yield values.astype("<f4", copy=False).tobytes()


def _replace(path: str, pieces: Iterator[bytes]) -> None:
    file = _native.AtomicFile(path)
    try:
        with open(file.temporary, "wb") as stream:
            for piece in pieces:
                stream.write(piece)
        file.commit()
    finally:
        file.discard()
