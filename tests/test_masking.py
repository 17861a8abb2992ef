"""Masked tokens and labels: which are chosen, and that results have types of their own, whatever integers came in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoders import LENGTH, TYPES, VOCAB_SIZE, small_encoder, small_inputs
from hypothesis import given
from hypothesis import strategies as st
from sparse_mixer import models
from sparse_mixer.masking import mask_tokens

Array = np.ndarray[Any, Any]


def inputs(dtype: Any = np.int64) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(5, 120, (6, LENGTH))
    return {
        "input_word_ids": ids.astype(dtype),
        "input_mask": np.ones_like(ids),
        "input_type_ids": np.zeros_like(ids) % TYPES,
    }


def masked(batch: dict[str, Any], **changes: Any) -> dict[str, Array]:
    arguments: dict[str, Any] = {"mask_id": 256, "vocab_size": 1000, "special_ids": range(5), "max_predictions": 3}
    return mask_tokens(batch, seed=1, rate=0.4, random_share=0.3, mask_share=0.6, **(arguments | changes))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4", "u4", "i8", "u8", ">i4", "f4", "O"])
def test_ids_of_any_type_are_masked_alike(dtype: str) -> None:
    """Mask and random words lie beyond 8 bits: they must not be written into the caller's 8 bits."""
    expected, given = masked(inputs()), inputs(np.dtype(dtype))
    before = given["input_word_ids"].copy()
    result = masked(given)
    assert (result["input_word_ids"] == 256).any()
    assert (result["input_word_ids"] > 256).any()
    for name, array in expected.items():
        np.testing.assert_array_equal(result[name], array)
    assert result["input_word_ids"].dtype == result["masked_lm_ids"].dtype == np.int32
    np.testing.assert_array_equal(given["input_word_ids"], before)
    as_lists = {name: array.tolist() for name, array in inputs().items()}
    np.testing.assert_array_equal(masked(as_lists)["input_word_ids"], expected["input_word_ids"])


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"mask_id": 1000}, ValueError, "mask_id: got 1000, expected 0 <= mask_id < 1000"),
        ({"mask_id": "[MASK]"}, TypeError, "mask_id: expected an integer"),
        ({"vocab_size": 2**40}, ValueError, "vocab_size: got 1099511627776, expected at most 2147483647"),
        ({"vocab_size": 100}, ValueError, r"mask_id: got 256"),
        ({"vocab_size": 100, "mask_id": 1}, ValueError, r"input_word_ids\[\d, \d\]: got 1\d\d, expected 0 <= id < 100"),
        ({"max_predictions": 1.5}, TypeError, "max_predictions: expected an integer"),
        ({"special_ids": [1.5]}, TypeError, r"special_ids\[0\]: expected an integer"),
    ],
)
def test_ids_that_are_none_are_refused(changes: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        masked(inputs(), **changes)


def test_masks_have_the_shape_of_the_ids() -> None:
    with pytest.raises(ValueError, match=r"input_mask: expected shape \[6, 8\], that of input_word_ids, got \[6, 7\]"):
        masked(inputs() | {"input_mask": np.ones((6, 7))})
    with pytest.raises(ValueError, match="input_word_ids: missing"):
        masked({"input_mask": np.ones((6, 8))})


def test_labels_beyond_64_signed_bits_do_not_become_negative_ones() -> None:
    """Negative labels count for nothing: a wrapped one would silently be left out."""
    batch = {name: array % 3 for name, array in inputs().items()}
    labels = np.zeros((6, LENGTH), np.uint64)
    labels[2, 3] = 2**64 - 1
    model = models.BertTokenClassifier(small_encoder(), 3)
    with pytest.raises(ValueError, match=r"labels"):
        model.evaluate((batch, labels))


@given(seed=st.integers(0, 2**32), examples=st.integers(1, 5), predictions=st.integers(1, 9), rate=st.floats(0, 1))
def test_masking(seed: int, examples: int, predictions: int, rate: float) -> None:
    inputs = small_inputs(examples, seed)
    ids = inputs["input_word_ids"].copy()
    special = range(4)
    masked = mask_tokens(
        inputs,
        seed=seed,
        mask_id=1,
        vocab_size=VOCAB_SIZE,
        special_ids=special,
        max_predictions=predictions,
        rate=rate,
    )
    np.testing.assert_array_equal(inputs["input_word_ids"], ids)
    for row in range(examples):
        used = masked["masked_lm_weights"][row] > 0
        positions = masked["masked_lm_positions"][row]
        choosable = ~np.isin(ids[row], special) & (inputs["input_mask"][row] > 0)
        wanted = min(predictions, max(1, int(rate * inputs["input_mask"][row].sum())))
        assert used.sum() == min(wanted, choosable.sum())
        assert (np.diff(positions[used]) > 0).all()
        assert choosable[positions[used]].all()
        np.testing.assert_array_equal(masked["masked_lm_ids"][row][used], ids[row][positions[used]])
        changed = np.flatnonzero(masked["input_word_ids"][row] != ids[row])
        assert set(changed) <= set(positions[used])
        new = masked["input_word_ids"][row][changed]
        assert ((new == 1) | ~np.isin(new, special)).all()
        assert not masked["masked_lm_ids"][row][~used].any()


def test_shares_of_masking() -> None:
    inputs = {"input_word_ids": np.full((400, 100), 10, np.int32), "input_mask": np.ones((400, 100), np.int32)}
    masked = mask_tokens(inputs, seed=0, mask_id=3, vocab_size=1000, special_ids=range(5), max_predictions=80)
    chosen = masked["masked_lm_weights"].sum()
    assert chosen == 400 * 15
    new = np.take_along_axis(masked["input_word_ids"], masked["masked_lm_positions"], 1)[:, :15]
    assert np.mean(new == 3) == pytest.approx(0.8, abs=0.02)
    assert np.mean(new == 10) == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match="rate: expected 0 to 1, got 2"):
        mask_tokens(inputs, seed=0, mask_id=3, vocab_size=9, special_ids=[], max_predictions=1, rate=2)
