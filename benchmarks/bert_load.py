"""A BERT with random weights, in the `transformers` package's form, which every engine reads in its own way."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from typing import Any, Self

import numpy as np

from benchmarks.cache import cache_directory, run_apart
from benchmarks.exported_files import trace
from benchmarks.workload import Workload

_TENSORFLOW = (
    (r"word_embeddings/embeddings", "embeddings.word_embeddings"),
    (r"position_embedding/embeddings", "embeddings.position_embeddings"),
    (r"type_embeddings/embeddings", "embeddings.token_type_embeddings"),
    (r"embeddings/layer_norm/\w+", "embeddings.LayerNorm"),
    (r"transformer/layer_(\d+)/self_attention/(query|key|value)/\w+", r"encoder.layer.\1.attention.self.\2"),
    (r"transformer/layer_(\d+)/self_attention/attention_output/\w+", r"encoder.layer.\1.attention.output.dense"),
    (r"transformer/layer_(\d+)/self_attention_layer_norm/\w+", r"encoder.layer.\1.attention.output.LayerNorm"),
    (r"transformer/layer_(\d+)/(intermediate|output)/\w+", r"encoder.layer.\1.\2.dense"),
    (r"transformer/layer_(\d+)/output_layer_norm/\w+", r"encoder.layer.\1.output.LayerNorm"),
    (r"pooler_transform/\w+", "pooler.dense"),
)
"""Names of weights of the Model Garden's encoder, and what transformers calls their layers."""


@dataclasses.dataclass(frozen=True)
class Bert(Workload):
    """A BERT in a folder."""

    model: pathlib.Path = pathlib.Path()

    @classmethod
    def random(cls, sizes: Workload) -> Self:
        """Return a BERT of these sizes; its folder is made at the first request and kept."""
        import transformers

        key = hashlib.sha256(repr((sizes, transformers.__version__)).encode()).hexdigest()[:16]
        folder = cache_directory() / f"bert-{key}"
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            run_apart(_write, sizes, unfinished)
            unfinished.rename(folder)
        return cls(**{field.name: getattr(sizes, field.name) for field in dataclasses.fields(sizes)}, model=folder)

    def module(self, **options: Any) -> Any:
        """Return transformers' model, ready for inference; `options` are those of `from_pretrained`."""
        from transformers import BertModel

        return BertModel.from_pretrained(self.model, local_files_only=True, **options).eval()

    def export(self, path: str) -> None:
        """Write an ONNX model with the inputs and outputs of all encoders that are measured."""
        import torch

        class Encoder(torch.nn.Module):
            def __init__(self, encoder: Any) -> None:
                super().__init__()
                self.encoder = encoder

            def forward(self, ids: Any, mask: Any, types: Any) -> Any:
                outputs = self.encoder(input_ids=ids, attention_mask=mask, token_type_ids=types)
                return outputs.last_hidden_state, outputs.pooler_output

        inputs = {name: torch.from_numpy(array) for name, array in self.inputs(2).items()}
        outputs = {"sequence_output": {0: "batch", 1: "tokens"}, "pooled_output": {0: "batch"}}
        # Eager attention and the model's own mask are what ONNX Runtime's optimiser knows.
        trace(Encoder(self.module(attn_implementation="eager")), inputs, outputs, path)


def _write(sizes: Workload, folder: pathlib.Path) -> None:
    """Save a BERT; biases and gains are random, too, so that one in a wrong place shows."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_attention_heads,
        intermediate_size=sizes.inner_dim,
        max_position_embeddings=sizes.max_sequence_length,
        type_vocab_size=sizes.type_vocab_size,
    )
    model = BertModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += 0.02 * torch.randn_like(weight)
    model.save_pretrained(folder)


def tensorflow_bert(workload: Bert) -> Any:
    """Return `tfm.nlp.networks.BertEncoder` with the weights of the folder, under the policy that is set."""
    from official.nlp.modeling import networks
    from safetensors.numpy import load_file

    encoder = networks.BertEncoder(
        vocab_size=workload.vocab_size,
        hidden_size=workload.hidden_size,
        num_layers=workload.num_layers,
        num_attention_heads=workload.num_attention_heads,
        max_sequence_length=workload.max_sequence_length,
        type_vocab_size=workload.type_vocab_size,
        inner_dim=workload.inner_dim,
        inner_activation="gelu",
        dict_outputs=True,
    )
    tensors = load_file(workload.model / "model.safetensors")
    encoder.set_weights([_tensor(tensors, weight.name, tuple(weight.shape)) for weight in encoder.weights])
    return encoder


def _tensor(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return what a weight of TensorFlow's encoder holds: kernels are transposed, and have an axis of heads."""
    name = name.split(":")[0]
    for pattern, layer in _TENSORFLOW:
        found = re.fullmatch(pattern, name)
        if found:
            leaf = name.rsplit("/", 1)[-1]
            tensor = tensors[f"{found.expand(layer)}.{'bias' if leaf in ('bias', 'beta') else 'weight'}"]
            return (tensor.T if leaf == "kernel" else tensor).reshape(shape)
    raise ValueError(f"no tensor for {name}")
