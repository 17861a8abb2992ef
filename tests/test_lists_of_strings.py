"""A string is a sequence of strings: every argument that takes a list says so instead of reading characters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoders import VOCAB_SIZE, small_encoder, small_inputs
from sparse_mixer import models, optimizers, plots, text, training
from sparse_mixer.masking import mask_tokens

tokenizers = pytest.importorskip("tokenizers")
ENCODER = small_encoder()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return text.train_tokenizer(["hello world, this is a text", "and another one"], vocab_size=60)


def fit(**arguments: Any) -> Any:
    model = models.BertClassifier(ENCODER, 2)
    return model.fit((small_inputs(), [0, 1]), optimizer=optimizers.SGD(), progress=False, **arguments)


def mask(special_ids: Any) -> Any:
    return mask_tokens(
        small_inputs(), seed=0, mask_id=1, vocab_size=VOCAB_SIZE, special_ids=special_ids, max_predictions=2
    )


CALLS: dict[str, tuple[str, Any]] = {
    "outputs of a call": ("outputs", lambda x: ENCODER(small_inputs(), outputs=x)),
    "outputs of vjp": ("outputs", lambda x: ENCODER.vjp(small_inputs(), outputs=x)),
    "outputs of an estimate": ("outputs", lambda x: ENCODER.memory_estimate(1, outputs=x)),
    "moe_layers": ("moe_layers", lambda x: small_encoder(moe_layers=x)),
    "attention_layers": ("attention_layers", lambda x: small_encoder(attention_layers=x)),
    "texts to learn from": ("texts", lambda x: text.train_tokenizer(x)),
    "no decay": ("exclude_from_weight_decay", lambda x: optimizers.AdamW(exclude_from_weight_decay=x)),
    "no decay of SGD": ("exclude_from_weight_decay", lambda x: optimizers.SGD(exclude_from_weight_decay=x)),
    "no adaptation": ("exclude_from_layer_adaptation", lambda x: optimizers.LAMB(exclude_from_layer_adaptation=x)),
    "names": ("var_names", lambda x: optimizers.AdamW().exclude_from_weight_decay(x)),
    "heads": ("classification_heads", lambda x: models.BertPretrainerV2(ENCODER, classification_heads=x)),
    "callbacks": ("callbacks", lambda x: fit(callbacks=x)),
    "special_ids": ("special_ids", mask),
    "weights": ("weights", ENCODER.set_weights),
    "routing": ("routing", lambda x: plots.routing_figure(x, [1])),
}


@pytest.mark.parametrize("value", ["bias", b"bias", {"a": 1}, 3], ids=repr)
@pytest.mark.parametrize("name", CALLS)
def test_lists_are_no_strings(name: str, value: Any) -> None:
    argument, call = CALLS[name]
    with pytest.raises(TypeError, match=rf"^{argument}: expected a (list|sequence)"):
        call(value)


@pytest.mark.parametrize("value", ["hello world", b"hello world", {"hello": 1}, 3], ids=repr)
def test_a_text_is_no_list_of_texts(tokenizer: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"^texts: expected a list of texts, got") as info:
        text.encode(tokenizer, value, 8)
    if isinstance(value, str):
        assert "pass a list, such as ['hello world']" in str(info.value)


def test_entries_are_checked_by_position(tokenizer: Any) -> None:
    for call, message in [
        (lambda: text.encode(tokenizer, ["a", 3], 8), r"texts\[1\]: expected a text or a pair of texts, got 3"),
        (lambda: text.encode(tokenizer, ["a", None], 8), r"texts\[1\]: "),
        (lambda: text.encode(tokenizer, [("a", "b", "c")], 8), r"texts\[0\]: "),
        (lambda: text.train_tokenizer(["a", b"b"]), r"texts\[1\]: expected a string, got b'b'"),
        (lambda: optimizers.AdamW(exclude_from_weight_decay=["bias", 3]), r"exclude_from_weight_decay\[1\]: "),
        (lambda: ENCODER(small_inputs(), outputs=[3]), r"outputs\[0\]: expected a string"),
        (lambda: fit(callbacks=[training.EarlyStopping]), "callbacks: expected sparse_mixer"),
        (lambda: models.BertPretrainerV2(ENCODER, classification_heads=["a"]), r"classification_heads\[0\]: "),
        (lambda: mask(["[PAD]"]), r"special_ids\[0\]: expected an integer, got '\[PAD\]'"),
    ]:
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match=r"exclude_from_weight_decay\[0\]: '\(' is no regular expression"):
        optimizers.AdamW(exclude_from_weight_decay=["("])


def test_lists_of_texts_are_any_iterables(tokenizer: Any) -> None:
    expected = text.encode(tokenizer, ["hello", "a text"], 8)
    for texts in (("hello", "a text"), np.array(["hello", "a text"]), iter(["hello", "a text"])):
        for name, array in text.encode(tokenizer, texts, 8).items():
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize(("texts", "least"), [(["hello"], 2), ([("hello", "world")], 3)])
def test_a_length_holds_the_special_tokens(tokenizer: Any, texts: Any, least: int) -> None:
    assert text.encode(tokenizer, texts, least)["input_mask"].sum() == least
    with pytest.raises(ValueError, match=rf"sequence_length: got {least - 1}, .* {least} special tokens"):
        text.encode(tokenizer, texts, least - 1)
