"""Corpus, tokeniser and batching of `sparse_mixer.text`."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sparse_mixer import text

from examples.corpus import stdlib_passages

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def passages():
    return list(stdlib_passages(limit=40))


@pytest.fixture(scope="module")
def tokenizer(passages):
    return text.train_tokenizer((p.text for p in passages), vocab_size=500)


def test_passages_are_real_text_in_a_fixed_order(passages):
    assert len(passages) == 40
    assert passages == list(stdlib_passages(limit=40))
    assert all(p.text.strip() for p in passages)
    assert len({p.package for p in passages} & set(sys.stdlib_module_names)) > 5


def test_passages_of_one_file_reach_the_wanted_size_but_the_last():
    sized = list(stdlib_passages(characters=300, limit=200))
    assert np.mean([len(p.text) >= 300 for p in sized]) > 0.5


def test_special_tokens_have_fixed_ids(tokenizer):
    assert [tokenizer.token_to_id(token) for token in text.SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_encode_pads_and_cuts_to_one_length(tokenizer):
    inputs = text.encode(tokenizer, ["return a value", "word " * 50, ""], 12)
    assert {name: (a.shape, a.dtype) for name, a in inputs.items()} == dict.fromkeys(
        ("input_word_ids", "input_mask", "input_type_ids"), ((3, 12), np.dtype(np.int32))
    )
    used = inputs["input_mask"].sum(1)
    assert used[1] == 12
    assert used[2] == 2  # [CLS] [SEP]
    ids = inputs["input_word_ids"]
    assert (ids[:, 0] == 2).all()
    assert all(ids[row, count - 1] == 3 for row, count in enumerate(used))
    assert (ids[inputs["input_mask"] == 0] == 0).all()


def test_encode_gives_pairs_two_types(tokenizer):
    inputs = text.encode(tokenizer, [("return a value", "of a list")], 32)
    used = inputs["input_mask"][0] == 1
    types = inputs["input_type_ids"][0]
    assert set(types[used]) == {0, 1}
    assert (np.diff(types[used]) >= 0).all()
    assert (types[~used] == 0).all()


def test_encode_leaves_the_callers_tokenizer_alone(tokenizer):
    before = tokenizer.to_str()
    text.encode(tokenizer, ["word " * 50], 8)
    assert tokenizer.to_str() == before


@pytest.mark.parametrize(
    ("length", "pad", "message"), [(0, "[PAD]", "sequence_length: expected at least 1, got 0"), (8, "<pad>", "'<pad>'")]
)
def test_encode_refuses(tokenizer, length, pad, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        text.encode(tokenizer, ["a"], length, pad)


def test_batches_cover_all_rows_in_order():
    rows = {"a": np.arange(10), "b": np.arange(20).reshape(10, 2)}
    parts = list(text.batches(rows, 4))
    assert [len(part["a"]) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([part["b"] for part in parts]), rows["b"])
    assert [len(part["a"]) for part in text.batches(rows, 4, whole=True)] == [4, 4]
    assert list(text.batches({"a": np.arange(3)}, 4, whole=True)) == []


@pytest.mark.parametrize(
    ("rows", "size", "message"),
    [({"a": np.zeros(2)}, 0, "batch_size"), ({"a": np.zeros(2), "b": np.zeros(3)}, 1, "arrays of one length")],
)
def test_batches_refuses(rows, size, message):
    with pytest.raises(ValueError, match=message):
        list(text.batches(rows, size))


def test_padding_share():
    assert text.padding_share({"input_mask": np.array([[1, 1, 0, 0], [1, 1, 1, 1]])}) == 0.25


def test_missing_tokenizers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"sparse_mixer\[text\]"):
        text.train_tokenizer(["a"])
