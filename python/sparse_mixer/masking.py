"""Masking of tokens for masked-language pre-training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.arrays import as_float32, as_integers
from sparse_mixer._core.checks import as_float, as_int, as_list, as_positive, as_seed
from sparse_mixer._core.seeds import Purpose, fresh_seed, generator

# Results are int32.
_MOST_WORDS = 2**31 - 1


def mask_tokens(
    inputs: Mapping[str, npt.NDArray[Any]],
    *,
    seed: int | None = None,
    mask_id: int,
    vocab_size: int,
    special_ids: Collection[int],
    max_predictions: int,
    rate: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    pad_id: int = 0,
) -> dict[str, npt.NDArray[Any]]:
    """Choose tokens to predict and hide most of them.

    In each example ``min(max_predictions, max(1, int(rate * n)))`` of its n tokens (where ``input_mask`` is 1, or
    without a mask, where the id is not `pad_id`) are chosen among those that are not special. A chosen token becomes
    `mask_id` with probability `mask_share`, a random token that is not special with `random_share`, and stays
    otherwise. Source: BERT; the Sparse Mixer paper's code.

    Args:
        inputs: Inputs of an encoder, [B, S]; not changed.
        seed: Source of all choices; None takes a random one, see `sparse_mixer.set_random_seed`.
        mask_id: Id of the mask token.
        vocab_size: Number of ids.
        special_ids: Ids that are neither chosen nor put in at random: separators, padding, the mask token.
        max_predictions: P, the most predictions per example.
        rate: Share of the tokens to predict.
        mask_share: Share of the chosen that become `mask_id`.
        random_share: Share of the chosen that become another token.
        pad_id: Id of padding, for inputs without a mask.

    Returns:
        The inputs with changed ``input_word_ids``, and ``masked_lm_positions`` (ascending), ``masked_lm_ids``, all
        int32, and ``masked_lm_weights``, float32, all [B, P]; unused places hold 0.

    Raises:
        ValueError: A share outside [0, 1], fewer than one prediction, an id outside the vocabulary, a vocabulary of
            special ids only, or a mask of another shape.
        TypeError: An argument of a wrong type.
    """
    shares = {"rate": rate, "mask_share": mask_share, "random_share": random_share}
    for name, share in shares.items():
        if not 0.0 <= as_float(name, share) <= 1.0:
            raise ValueError(f"{name}: expected 0 to 1, got {share}")
    words, places = as_positive("vocab_size", vocab_size), as_positive("max_predictions", max_predictions)
    if words > _MOST_WORDS:
        raise ValueError(f"vocab_size: got {words}, expected at most {_MOST_WORDS}")
    mask_word = as_int("mask_id", mask_id)
    if not 0 <= mask_word < words:
        raise ValueError(f"mask_id: got {mask_word}, expected 0 <= mask_id < {words}")
    listed = enumerate(as_list("special_ids", special_ids, "ids"))
    special = np.array([as_int(f"special_ids[{position}]", number) for position, number in listed], np.int64)
    ordinary = np.setdiff1d(np.arange(words), special)
    if not ordinary.size:
        raise ValueError("special_ids: expected some ids of the vocabulary not to be special")
    given, used = _read(inputs, words, as_int("pad_id", pad_id))
    rng = generator(Purpose.MASKING, fresh_seed() if seed is None else as_seed("seed", seed))
    # Of their own type: mask and random words may not fit into the caller's.
    ids = given.astype(np.int32)
    shape = (len(given), places)
    positions, labels = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    for row, candidates in enumerate(used & ~np.isin(ids, special)):
        wanted = min(places, max(1, int(rate * np.count_nonzero(used[row]))))
        count = min(wanted, int(np.count_nonzero(candidates)))
        chosen = np.sort(rng.choice(np.flatnonzero(candidates), count, replace=False))
        positions[row, :count], labels[row, :count], weights[row, :count] = chosen, ids[row, chosen], 1.0
        uniform = rng.random(count)
        replaced = np.where(uniform < mask_share, mask_word, ids[row, chosen])
        at_random = (uniform >= mask_share) & (uniform < mask_share + random_share)
        ids[row, chosen] = np.where(at_random, rng.choice(ordinary, count), replaced)
    return {
        **inputs,
        "input_word_ids": ids,
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "masked_lm_weights": weights,
    }


def _read(inputs: Mapping[str, Any], words: int, pad_id: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The word ids [B, S], and where there are tokens."""
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs: expected a dict with input_word_ids, got {type(inputs).__name__}")
    if inputs.get("input_word_ids") is None:
        raise ValueError("input_word_ids: missing from the inputs")
    ids = as_integers("input_word_ids", inputs["input_word_ids"])
    if ids.ndim != 2:
        raise ValueError(f"input_word_ids: expected shape [batch, length], got {list(ids.shape)}")
    wrong = (ids < 0) | (ids >= words)
    if wrong.any():
        position = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"input_word_ids{list(position)}: got {ids[position]}, expected 0 <= id < {words}")
    if inputs.get("input_mask") is None:
        return ids, ids != pad_id
    mask = as_float32("input_mask", inputs["input_mask"])
    if mask.shape != ids.shape:
        expected = f"expected shape {list(ids.shape)}, that of input_word_ids"
        raise ValueError(f"input_mask: {expected}, got {list(mask.shape)}")
    return ids, mask > 0
