"""Masking of tokens for masked-language pre-training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def mask_tokens(
    inputs: Mapping[str, npt.NDArray[Any]],
    *,
    seed: int,
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
        seed: Source of all choices.
        mask_id: Id of the mask token.
        vocab_size: Number of ids.
        special_ids: Ids that are neither chosen nor put in at random: separators, padding, the mask token.
        max_predictions: P, the most predictions per example.
        rate: Share of the tokens to predict.
        mask_share: Share of the chosen that become `mask_id`.
        random_share: Share of the chosen that become another token.
        pad_id: Id of padding, for inputs without a mask.

    Returns:
        The inputs with changed ``input_word_ids``, and ``masked_lm_positions`` (ascending), ``masked_lm_ids``, both
        int32, and ``masked_lm_weights``, float32, all [B, P]; unused places hold 0.

    Raises:
        ValueError: A share outside [0, 1], fewer than one prediction, or a vocabulary of special ids only.
    """
    shares = {"rate": rate, "mask_share": mask_share, "random_share": random_share}
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name}: expected 0 to 1, got {share}")
    if max_predictions < 1:
        raise ValueError(f"max_predictions: expected at least 1, got {max_predictions}")
    special = np.fromiter(special_ids, np.int64)
    ordinary = np.setdiff1d(np.arange(vocab_size), special)
    if not ordinary.size:
        raise ValueError("special_ids: expected some ids of the vocabulary not to be special")
    rng = np.random.default_rng(seed)
    ids = np.array(inputs["input_word_ids"])
    mask = inputs.get("input_mask")
    used = ids != pad_id if mask is None else np.asarray(mask) > 0
    shape = (len(ids), max_predictions)
    positions, labels = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    for row, candidates in enumerate(used & ~np.isin(ids, special)):
        wanted = min(max_predictions, max(1, int(rate * np.count_nonzero(used[row]))))
        count = min(wanted, int(np.count_nonzero(candidates)))
        chosen = np.sort(rng.choice(np.flatnonzero(candidates), count, replace=False))
        positions[row, :count], labels[row, :count], weights[row, :count] = chosen, ids[row, chosen], 1.0
        draw = rng.random(count)
        replaced = np.where(draw < mask_share, mask_id, ids[row, chosen])
        at_random = (draw >= mask_share) & (draw < mask_share + random_share)
        ids[row, chosen] = np.where(at_random, rng.choice(ordinary, count), replaced)
    return {
        **inputs,
        "input_word_ids": ids,
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "masked_lm_weights": weights,
    }
