"""Tokenizers in folders of XLM-RoBERTa, CamemBERT and RoBERTa, against the packages that wrote them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from damaged_files import damaged
from sparse_mixer import CheckpointError
from sparse_mixer.text import load_tokenizer

REQUIRED = os.environ.get("SPARSE_MIXER_REQUIRE_HF") == "1"
MODEL = Path(__file__).parent / "golden" / "sentencepiece" / "sentencepiece.bpe.model"
# Of whole texts, what that package gives; see `tests/reference/make_sentencepiece.py`.
EXPECTED = json.loads((MODEL.parent / "expected.json").read_text())
SPECIAL = {"xlm-roberta": ("<s>", "</s>"), "camembert": ("<s>", "</s>")}


def folder_of(folder: Path, kind: str, content: bytes | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "sentencepiece.bpe.model").write_bytes(MODEL.read_bytes() if content is None else content)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


def fairseq_ids(kind: str, ids: list[int]) -> list[int]:
    """The ids that fairseq gives to pieces: `ids` are the file's own, in which 0 is unknown, 1 start and 2 end."""
    if kind == "xlm-roberta":
        return [0, *(3 if number == 0 else number + 1 for number in ids), 2]
    # Start and end are the file's own.
    return [5, *(3 if number == 0 else number + 4 for number in ids), 6]


@pytest.mark.parametrize("kind", SPECIAL)
def test_ids_are_that_packages_with_the_offset_of_fairseq(tmp_path: Path, kind: str) -> None:
    tokenizer = load_tokenizer(folder_of(tmp_path, kind))
    for text, ids in EXPECTED:
        assert tokenizer.encode(text).ids == fairseq_ids(kind, ids), text
    assert tokenizer.token_to_id("<pad>") == 1
    assert tokenizer.token_to_id("<mask>") == tokenizer.get_vocab_size() - 1
    pair = tokenizer.encode("the cat", "a dog").ids
    start, end = fairseq_ids(kind, [])
    assert (pair[0], pair[-1], pair.count(end)) == (start, end, 3)
    with_mask = tokenizer.encode("the <mask> sat").tokens
    assert "<mask>" in with_mask
    assert load_tokenizer(tmp_path / "sentencepiece.bpe.model").encode("the cat").ids == tokenizer.encode("the cat").ids


def test_the_package_itself_gives_these(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    tokenizer = load_tokenizer(folder_of(tmp_path, "xlm-roberta"))
    chance = random.Random(3)
    letters = "abcdefghijklmnopqrstuvwxyz   ,.!?-éüßΩ中文\u00a0\t\n①ﬁ"
    for _ in range(300):
        text = "".join(chance.choice(letters) for _ in range(chance.randint(0, 40)))
        assert tokenizer.encode(text).ids == fairseq_ids("xlm-roberta", processor.encode(text)), repr(text)


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    for kind in ("t5", None, ["xlm-roberta"]):
        with pytest.raises(CheckpointError, match="which ids its pieces have depends on the encoder"):
            load_tokenizer(folder_of(tmp_path, kind))  # type: ignore[arg-type]
    for content, message in [
        (b"", "it has no pieces"),
        (b"\x0a\xff", "a number does not end"),
        (b"\x0a\x05abc", "cut short"),
        (b"\x08\x05", "a field is no message"),
        (b"\x0b", "unknown kind 3"),
        (MODEL.read_bytes() + b"\x12\x02\x18\x02", "type 2 is not read, only unigram models, type 1"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(folder_of(tmp_path, "camembert", content))


def test_damaged_files_give_clear_errors(tmp_path: Path) -> None:
    chance, good = random.Random(0), MODEL.read_bytes()
    outcomes: dict[str, Any] = {"loaded": 0, "refused": 0}
    for _ in range(60):
        folder = folder_of(tmp_path, "xlm-roberta", damaged(good, chance))
        outcome = "refused"
        with contextlib.suppress(CheckpointError):
            load_tokenizer(folder)
            outcome = "loaded"
        outcomes[outcome] += 1
    assert outcomes["refused"] > 10


def byte_pairs(folder: Path) -> Path:
    """The files of a RoBERTa, trained on a few words."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = ["the cat sat on the mat", "süße Äpfel", " a dog   sat"] * 3
    trained.train_from_iterator(words, vocab_size=300, special_tokens=special, show_progress=False)
    folder.mkdir()
    trained.save_model(str(folder))
    return folder


def test_pairs_of_bytes(tmp_path: Path) -> None:
    folder = byte_pairs(tmp_path / "roberta")
    tokenizer = load_tokenizer(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    tokens = tokenizer.encode("the cat", "süß").tokens
    assert (tokens[0], tokens[-1], tokens.count("</s>")) == ("<s>", "</s>", 3)
    assert tokens[1] == "the"
    assert tokens[2].startswith("\u0120")
    assert tokenizer.encode("the cat").ids == load_tokenizer(folder / "merges.txt").encode("the cat").ids
    assert tokenizer.decode(tokenizer.encode("süße Äpfel").ids) == "süße Äpfel"
    assert tokenizer.encode("a <mask>").ids[-2] == vocabulary["<mask>"] == 4
    (folder / "vocab.json").write_text(json.dumps({"<s>": 0}))
    with pytest.raises(CheckpointError, match="not a vocabulary of RoBERTa: there is no </s>"):
        load_tokenizer(folder)
    (folder / "vocab.json").write_text(json.dumps({"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}))
    with pytest.raises(CheckpointError, match=r"merges\.txt: not usable with vocab\.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_transformers_gives_these_ids(tmp_path: Path, kind: str) -> None:
    for package in ("transformers", "sentencepiece"):
        importlib.import_module(package) if REQUIRED else pytest.importorskip(package)
    import transformers

    folder = byte_pairs(tmp_path / kind) if kind == "roberta" else folder_of(tmp_path / kind, kind)
    classes = {"roberta": "RobertaTokenizer", "xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer"}
    theirs = getattr(transformers, classes[kind]).from_pretrained(folder)
    ours = load_tokenizer(folder)
    for text, _ in EXPECTED:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
