"""Texts in the forms in which scikit-learn hands them on."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_texts(X: Any) -> list[str]:
    """The texts in a list, an array or series [N], or a table with one column, as a `ColumnTransformer` makes it.

    Raises:
        ValueError: A single text, numbers, several columns, or an entry that is no text.
    """
    if isinstance(X, str | bytes):
        raise ValueError(f"X: expected a list of texts, got a single one ({type(X).__name__})")
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray):
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise ValueError(f"X: expected texts [N] or [N, 1], got shape {list(X.shape)}")
        X = X.tolist()
    texts = list(X)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"X[{position}]: expected a text, got {text!r} ({type(text).__name__})")
    return texts


def text_tags(tags: Any) -> Any:
    """The tags of an estimator that takes texts."""
    tags.input_tags.one_d_array = True
    tags.input_tags.two_d_array = False
    tags.input_tags.string = True
    return tags
