"""Corpus, tokeniser and batching of `sparse_mixer.text`."""

from __future__ import annotations

import sys
import time

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


# --- the tokenizer's own settings, and what a call costs ---

TEXT = "return a value of the list if the value is in the list"


def ids_of(tokenizer, texts, length):
    """By way of the tokenizer itself, on a copy."""
    twin = type(tokenizer).from_str(tokenizer.to_str())
    own = twin.truncation or {}
    twin.enable_truncation(
        length, strategy=own.get("strategy", "longest_first"), direction=own.get("direction", "right")
    )
    padding = twin.padding or {"pad_id": 0, "pad_token": "[PAD]", "pad_type_id": 0, "direction": "right"}
    padding = {key: padding[key] for key in ("direction", "pad_id", "pad_token", "pad_type_id")}
    twin.enable_padding(length=length, **padding)
    encodings = twin.encode_batch(texts)
    return {
        "input_word_ids": [e.ids for e in encodings],
        "input_mask": [e.attention_mask for e in encodings],
        "input_type_ids": [e.type_ids for e in encodings],
    }


@pytest.mark.parametrize(
    ("truncation", "padding"),
    [
        ({}, {}),
        ({"direction": "left"}, {}),
        ({"strategy": "only_second"}, {"direction": "left"}),
        ({"strategy": "only_first", "direction": "left", "stride": 2}, {"pad_id": 3, "pad_token": "[SEP]"}),
        ({}, {"pad_type_id": 1, "length": 50, "pad_to_multiple_of": 7}),
    ],
)
def test_encode_keeps_the_tokenizers_own_settings(tokenizer, truncation, padding):
    own = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    own.add_tokens(["foo_bar", tokenizers.AddedToken("zz9", single_word=True, lstrip=True)])
    own.add_special_tokens(["[X]"])
    if truncation:
        own.enable_truncation(6, **truncation)
    if padding:
        own.enable_padding(**padding)
    before = own.to_str()
    batch = [TEXT, (TEXT, TEXT)] if truncation.get("strategy") is None else [(TEXT, TEXT), (TEXT, "a " + TEXT)]
    if truncation.get("strategy") == "only_second":
        batch = [("a value", TEXT), ("a", "[X] foo_bar zz9")]
    if truncation.get("strategy") == "only_first":
        batch = [(TEXT, "a value"), TEXT, "a"]
    expected = ids_of(own, batch, 12)
    for name, array in text.encode(own, batch, 12).items():
        np.testing.assert_array_equal(array, expected[name])
    assert own.to_str() == before


def test_encode_follows_changes_of_the_tokenizer(tokenizer):
    own = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    before = text.encode(own, ["Return foo_bar"], 12)["input_word_ids"]
    own.add_tokens(["foo_bar"])
    after = text.encode(own, ["Return foo_bar"], 12)["input_word_ids"]
    assert not np.array_equal(before, after)
    own.normalizer = tokenizers.normalizers.Replace("return", "value")
    own.post_processor = tokenizers.processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    changed = text.encode(own, ["return foo_bar"], 12)["input_word_ids"][0].tolist()
    assert changed[:3] == [own.token_to_id("value"), own.token_to_id("foo_bar"), 3]


def test_encode_does_not_write_out_the_tokenizer():
    """Writing out and reading 30,000 word pieces takes far longer than using them."""
    pieces = {piece: number for number, piece in enumerate([*text.SPECIAL_TOKENS, *map(str, range(30_000))])}
    large = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    large.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    large.add_special_tokens(list(text.SPECIAL_TOKENS))

    def seconds(call):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    copied = seconds(lambda: tokenizers.Tokenizer.from_str(large.to_str()))
    assert seconds(lambda: text.encode(large, ["17 29999 x"], 12)) < copied / 4


def test_other_tokenizers_are_refused_with_a_hint(tokenizer):
    class Fast:
        backend_tokenizer = tokenizer

    for wrong, message in [(Fast(), r"pass tokenizer\.backend_tokenizer"), (None, "got NoneType"), ("x", "got str")]:
        with pytest.raises(TypeError, match=rf"tokenizer: expected a tokenizers\.Tokenizer, .*{message}"):
            text.encode(wrong, ["a"], 8)


def test_a_tokenizer_that_cannot_cut_says_so(tokenizer):
    own = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    own.enable_truncation(6, strategy="only_second")
    with pytest.raises(ValueError, match="texts: cannot be cut to 8 tokens by the strategy 'only_second'"):
        text.encode(own, [(TEXT, "a")], 8)
