"""Small models of texts, as folders and as objects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import sparse_mixer
from sparse_mixer import TextEncoder

BERT = Path(__file__).parent / "golden" / "checkpoints" / "hf_bert"
LETTERS = "abcdefghijkl"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "."]
POOLING = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def folder_of(path: Path, *, pooling: dict[str, Any] | None = None, normalize: bool = True, **more: Any) -> Path:
    """A folder of `sentence-transformers` with the golden BERT; `more` are files by name without ending."""
    path.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(BERT / name, path)
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    parts = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    places = ["", "1_Pooling", "2_Normalize"]
    listed = [
        {"idx": i, "name": str(i), "path": places[i], "type": f"sentence_transformers.models.{part}"}
        for i, part in enumerate(parts)
    ]
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps(POOLING if pooling is None else pooling))
    for name, content in more.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def small_model(folder: Path, **changes: Any) -> TextEncoder:
    """A model of one layer of attention with random weights, always the same, for texts of up to 14 letters.

    Its vocabulary is written to `folder`, and it is saved there, as ``model.safetensors``.
    """
    sizes: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "inner_dim": 32, "num_attention_heads": 2}
    layers: dict[str, Any] = {"attention_layers": (0,), "moe_layers": (), "shorter_sequences": True}
    encoder = sparse_mixer.SparseMixer(len(VOCABULARY), **sizes, **layers, max_sequence_length=16, seed=0)
    folder.mkdir(exist_ok=True)
    encoder.save(folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return TextEncoder(encoder, folder / "vocab.txt", **changes)
