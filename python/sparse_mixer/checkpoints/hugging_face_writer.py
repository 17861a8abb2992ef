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
from sparse_mixer.checkpoints.hugging_face import ACTIVATIONS, DISTILBERT, EPSILON, WITHOUT_TYPES
from sparse_mixer.layers import MixingMechanism

Array = npt.NDArray[np.float32]

FILE_FORMAT = "huggingface"
"""The `file_format` of such folders; a colon and a kind of model may follow."""
WITH_HEADS = ("bert", "roberta", "electra", "distilbert")
"""Kinds of models that may have heads; also what such models call their encoders."""

_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "electra": "Electra",
    "distilbert": "DistilBert",
    "mpnet": "MPNet",
    "fnet": "FNet",
}
# Parts of names that only this kind of model has.
_SPELLING = {
    "bert": (),
    "roberta": (),
    "electra": ("embeddings_project",),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin", "sa_layer_norm", "ffn.", ".output_layer_norm"),
    "mpnet": (".attn.", "attention.LayerNorm"),
    "fnet": ("fourier.", "embeddings.projection"),
}
# That package's tokenizers for these pad with this token; positions are counted from behind its row.
_PADDING = 1
_PADDED = ("roberta", "mpnet")
_POSITIONS, _TYPES = "position_embedding/embeddings", "type_embeddings/embeddings"


def save_hugging_face(
    encoder: Encoder,
    folder: str,
    *,
    file_format: str = FILE_FORMAT,
    ending: str = "Model",
    heads: Mapping[str, Array] | None = None,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into `folder`, which is made if it is not there.

    Args:
        encoder: A BERT, an ELECTRA (embeddings of another width), an MPNet (relative position biases) or an FNet.
        folder: The folder.
        file_format: `FILE_FORMAT`, perhaps with a kind of model.
        ending: Of that package's class.
        heads: Tensors of heads by that package's names.

    Raises:
        ValueError: The encoder is something else; the message says what.
        OSError: A file cannot be written.
    """
    kind = kind_of(encoder, file_format)
    config = _config(encoder, kind, _CLASSES[kind] + ending)
    tensors = dict(_tensors(encoder, kind, "" if heads is None else f"{kind}."))
    tensors |= {} if heads is None else heads
    biases = [name for name in ("classifier.bias", "classifier.out_proj.bias") if name in tensors]
    if biases:
        # That package has the number of classes from here.
        labels = [f"LABEL_{number}" for number in range(len(tensors[biases[0]]))]
        config["id2label"] = dict(enumerate(labels))
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    os.makedirs(folder, exist_ok=True)
    _replace(os.path.join(folder, "model.safetensors"), _safetensors(tensors))
    text = json.dumps(config, indent=2) + "\n"
    _replace(os.path.join(folder, "config.json"), iter([text.encode()]))


def kind_of(encoder: Encoder, file_format: str) -> str:
    """``model_type`` of what computes the same: the one that `file_format` names, else the nearest.

    Raises:
        ValueError: There is none.
    """
    a = encoder.arguments
    _, colon, kind = file_format.partition(":")
    attending = len(a.layers_within("attention_layers"))
    fourier = attending == 0 and a.mixing_mechanism is MixingMechanism.FOURIER
    own_width = a.width() == a.hidden_size
    biased = a.relative_attention_num_buckets is not None
    if not colon:
        kind = "fnet" if fourier else "mpnet" if biased else "bert" if own_width else "electra"
    if kind not in _CLASSES or file_format.partition(":")[0] != FILE_FORMAT:
        known = ", ".join(f"{FILE_FORMAT}:{kind}" for kind in _CLASSES)
        raise ValueError(f"file_format: got {file_format!r}, expected {FILE_FORMAT!r} or one of {known}")
    activation = a.inner_activation.get("name") if isinstance(a.inner_activation, dict) else None
    projects = a.semantics == "paper" if a.project_embeddings is None else a.project_embeddings
    attends = kind != "fnet"
    reasons = {
        "it has experts": bool(a.layers_within("moe_layers")),
        "it has layers that neither all attend nor all mix by Fourier transforms": attending != a.num_layers
        and not fourier,
        "its layers mix by Fourier transforms": attends and fourier,
        "its attention has relative position biases": biased and kind != "mpnet",
        "its attention has no relative position biases": not biased and kind == "mpnet",
        "its layers attend": not attends and attending > 0,
        f"its activation is none of {sorted(set(ACTIVATIONS.values()))}": activation not in ACTIVATIONS.values(),
        "it normalises before sublayers (norm_first)": a.norm_first,
        "it has an own embedding_layer": a.embedding_layer is not None,
        "it has an output_range": a.output_range is not None,
        "it has a pad_id": attends and a.padding_id() not in (None, -1),
        "its embeddings are projected to their own width": attends and projects and own_width,
        "its embeddings are not projected": not attends and not projects,
        "its embeddings have another width": kind != "electra" and not own_width,
        "it has no pooler": not attends and not a.with_pooler,
        "it has a pooler, which an ELECTRA has not": kind == "electra" and a.with_pooler,
        "it has a pooler, which a DistilBERT has not": kind == "distilbert" and a.with_pooler,
        f"it has token types, which {_CLASSES[kind]} has not": kind in WITHOUT_TYPES and a.type_vocab_size > 1,
        f"its layer_norm_epsilon is not DistilBERT's, {EPSILON}": kind == "distilbert"
        and a.layer_norm_epsilon != EPSILON,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"file_format: {file_format!r} has no model for this encoder: {reason}")
    return kind


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
    if kind == "electra":
        config["embedding_size"] = a.width()
    if kind in _PADDED:
        config["max_position_embeddings"] += _PADDING + 1
        config["pad_token_id"] = _PADDING
    if kind == "mpnet":
        del config["type_vocab_size"]
        return config | {"relative_attention_num_buckets": a.relative_attention_num_buckets}
    if kind == "distilbert":
        del config["type_vocab_size"], config["layer_norm_eps"]
        return {DISTILBERT.get(key, key): value for key, value in config.items()} | {"sinusoidal_pos_embds": False}
    return config if kind == "fnet" else {**config, "position_embedding_type": "absolute"}


def _tensors(encoder: Encoder, kind: str, prefix: str) -> Iterator[tuple[str, Array]]:
    """Name and values of the encoder's weights."""
    types = next(variable for variable in encoder.all_variables if variable.key == _TYPES).numpy()
    for variable in encoder.all_variables:
        values = to_pytorch(variable.key, variable.numpy())
        if kind in WITHOUT_TYPES and variable.key == _TYPES:
            continue
        if kind in WITHOUT_TYPES and variable.key == _POSITIONS:
            # The one type, which all positions have, goes where positions are.
            values = values + types
        if kind in _PADDED and variable.key == _POSITIONS:
            values = np.concatenate([np.zeros((_PADDING + 1, values.shape[1]), np.float32), values])
        names = _native.foreign_names("huggingface", variable.key, list(variable.shape))
        own = [name for name in names if any(part in name for part in _SPELLING[kind])]
        yield prefix + (own or names)[0], values


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
