"""Encoders and models as folders of the `transformers` package, and its heads in our models."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from sparse_mixer import CheckpointError, SparseMixer
from sparse_mixer.models import (
    BertClassifier,
    BertPretrainerV2,
    BertSpanLabeler,
    BertTokenClassifier,
    ClassificationHead,
)

GOLDEN = Path(__file__).parent / "golden" / "checkpoints"
BERT = GOLDEN / "hf_bert"


def inputs(length: int = 8) -> dict[str, Any]:
    expected = np.load(BERT / "outputs.npz")
    return {key: expected[key][:, :length] for key in ("input_word_ids", "input_mask", "input_type_ids")}


def electra() -> SparseMixer:
    config = SparseMixer.load(BERT, with_pooler=False).get_config()
    return SparseMixer(**{**config, "embedding_width": 6, "seed": 1})


ENCODERS = {
    "bert": lambda: SparseMixer.load(BERT),
    "fnet": lambda: SparseMixer.load(GOLDEN / "hf_fnet"),
    "electra": electra,
}


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    encoder = ENCODERS[kind]()
    encoder.save(tmp_path / "new" / "folder", file_format="huggingface")
    again = SparseMixer.load(tmp_path / "new" / "folder")
    ours, theirs = again.get_config(), encoder.get_config()
    for config in (ours, theirs):
        config.pop("seed", None)
    assert ours == theirs
    for one, other in zip(again.get_weights(), encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["bert", "fnet"])
def test_names_and_layout_are_that_packages(tmp_path: Path, kind: str) -> None:
    ENCODERS[kind]().save(tmp_path, file_format="huggingface")
    ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    theirs = safetensors.numpy.load_file(GOLDEN / f"hf_{kind}" / "model.safetensors")
    theirs = {name.removeprefix(f"{kind}."): t for name, t in theirs.items() if name.startswith(f"{kind}.")}
    assert set(ours) == set(theirs) - {"embeddings.position_ids", "embeddings.token_type_ids"}
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in json.loads((GOLDEN / f"hf_{kind}" / "config.json").read_text()).items():
        if key in config and key != "architectures":
            assert config[key] == value, key


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"moe_layers": (0,), "num_experts": 2}, "it has experts"),
        ({"attention_layers": (0,), "shorter_sequences": None}, "neither all attend nor all mix"),
        ({"norm_first": True}, "norm_first"),
        ({"inner_activation": "elu"}, "its activation"),
        ({"pad_id": 0}, "it has a pad_id"),
        ({"output_range": 2}, "output_range"),
        ({"embedding_width": 6}, "which an ELECTRA has not"),
    ],
)
def test_what_that_package_does_not_have_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    encoder = SparseMixer(**{**SparseMixer.load(BERT).get_config(), **changes})
    with pytest.raises(ValueError, match=f"file_format: 'huggingface' has no model for this encoder: .*{reason}"):
        encoder.save(tmp_path / "folder", file_format="huggingface")
    assert not (tmp_path / "folder").exists()


def models(encoder: SparseMixer) -> dict[str, Any]:
    pairs = ClassificationHead(0, 2, use_encoder_pooler=True)
    return {
        "BertForSequenceClassification": BertClassifier(encoder, 3, seed=1),
        "BertForTokenClassification": BertTokenClassifier(encoder, 5, seed=2),
        "BertForQuestionAnswering": BertSpanLabeler(encoder, seed=3),
        "BertForMaskedLM": BertPretrainerV2(encoder, "gelu", seed=4),
        "BertForPreTraining": BertPretrainerV2(encoder, "gelu", classification_heads=[pairs], seed=5),
    }


def flat(outputs: Any) -> list[Any]:
    if isinstance(outputs, dict):
        return [array for name in sorted(outputs) for array in flat(outputs[name])]
    return [array for part in outputs for array in flat(part)] if isinstance(outputs, list) else [outputs]


@pytest.mark.parametrize("architecture", list(models(SparseMixer.load(BERT))))
def test_models_with_heads(tmp_path: Path, architecture: str) -> None:
    model = models(SparseMixer.load(BERT))[architecture]
    model.save(tmp_path, file_format="huggingface")
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture]
    fresh = models(SparseMixer(**{**model.encoder.get_config(), "seed": 9}))[architecture]
    fresh.load_weights(tmp_path)
    batch: dict[str, Any] = inputs()
    if "MaskedLM" in architecture or "PreTraining" in architecture:
        batch["masked_lm_positions"] = np.array([[1, 2]] * 3)
    for ours, theirs in zip(flat(fresh(batch)), flat(model(batch)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # The encoder alone, too.
    np.testing.assert_array_equal(SparseMixer.load(tmp_path).get_weights()[0], model.encoder.get_weights()[0])


def test_heads_of_that_packages_files(tmp_path: Path) -> None:
    """The golden file is of BertForPreTraining."""
    pairs = ClassificationHead(0, 2, use_encoder_pooler=True)
    model = BertPretrainerV2(SparseMixer.load(BERT), "gelu", classification_heads=[pairs])
    model.load_weights(BERT)
    theirs = safetensors.numpy.load_file(BERT / "model.safetensors")
    values = {v.key: v.numpy() for head in model.heads.values() for v in head.all_variables}
    np.testing.assert_array_equal(
        values["cls/predictions/transform/dense/kernel"], theirs["cls.predictions.transform.dense.weight"].T
    )
    np.testing.assert_array_equal(values["cls/predictions/output_bias/bias"], theirs["cls.predictions.bias"])
    np.testing.assert_array_equal(values["next_sentence/logits/kernel"], theirs["cls.seq_relationship.weight"].T)
    with pytest.raises(CheckpointError, match=r"do not fit this model's heads: classifier\.weight"):
        BertClassifier(SparseMixer.load(BERT), 3).load_weights(BERT)
    with pytest.raises(ValueError, match="no model for this BertPretrainerV2"):
        BertPretrainerV2(SparseMixer.load(BERT), "relu").save(tmp_path, file_format="huggingface")
    with pytest.raises(ValueError, match="no model for this BertClassifier"):
        BertClassifier(SparseMixer.load(BERT), 3, use_encoder_pooler=False).save(tmp_path, file_format="huggingface")


@pytest.mark.parametrize("architecture", list(models(SparseMixer.load(BERT))))
def test_the_package_itself_loads_them(tmp_path: Path, architecture: str) -> None:
    for package in ("torch", "transformers"):
        required = os.environ.get("SPARSE_MIXER_REQUIRE_HF") == "1"
        importlib.import_module(package) if required else pytest.importorskip(package)
    import torch
    import transformers

    model = models(SparseMixer.load(BERT))[architecture]
    model.save(tmp_path, file_format="huggingface")
    theirs = getattr(transformers, architecture).from_pretrained(tmp_path).eval()
    batch = inputs()
    keys = {"input_ids": "input_word_ids", "attention_mask": "input_mask", "token_type_ids": "input_type_ids"}
    with torch.no_grad():
        results = theirs(**{key: torch.tensor(batch[ours].astype(np.int64)) for key, ours in keys.items()})
    if "MaskedLM" in architecture or "PreTraining" in architecture:
        outputs = model({**batch, "masked_lm_positions": np.array([range(8)] * 3)})
        expected = [results["logits" if "MaskedLM" in architecture else "prediction_logits"]]
        got = [outputs["mlm_logits"]]
    else:
        got = flat(model(batch))
        expected = list(results.values())
    for ours, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=2e-5)
