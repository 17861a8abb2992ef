"""Texts as vectors, in pipelines of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from sparse_mixer._core.checks import as_bool, as_positive
from sparse_mixer.sklearn.texts import as_texts, text_tags
from sparse_mixer.text import TextEncoder


class SparseMixerFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turns texts into vectors with a `TextEncoder`; learns nothing, the encoder is used as it is.

    Examples:
        >>> from sparse_mixer import SparseMixer
        >>> from sparse_mixer.sklearn import SparseMixerFeatures
        >>> from sparse_mixer.text import train_tokenizer
        >>> texts = ["red apples", "green pears"]
        >>> sizes = dict(hidden_size=16, num_layers=1, inner_dim=32, max_sequence_length=8)
        >>> features = SparseMixerFeatures(SparseMixer(60, **sizes, seed=0), train_tokenizer(texts, 60))
        >>> features.fit_transform(texts).shape
        (2, 16)

    Attributes:
        text_encoder_: The `TextEncoder`, after `fit`.
    """

    def __init__(
        self,
        encoder: Any = None,
        tokenizer: Any = None,
        pooling: str | Sequence[str] | None = None,
        normalize: bool = False,
        batch_size: int = 32,
        max_seq_length: int | None = None,
        on_truncation: str = "ignore",
    ) -> None:
        """Keep the settings; they are checked by `fit`.

        Args:
            encoder: A `SparseMixer`, or a folder or file, as `TextEncoder` takes.
            tokenizer: As there; None for that of the folder.
            pooling: As there; a tuple for several modes.
            normalize: Whether vectors are divided by their lengths.
            batch_size: Texts per pass through the encoder.
            max_seq_length: Tokens per text, special tokens included; None for as many as the encoder takes.
            on_truncation: What happens where a text has more, beside cutting it: ``"warn"``, ``"error"``, ``"ignore"``.
        """
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.normalize = normalize
        self.batch_size = batch_size
        self.max_seq_length = max_seq_length
        self.on_truncation = on_truncation

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check texts and settings.

        Args:
            X: N texts: a list, an array or a series, or a table with one column.
            y: Ignored.

        Raises:
            ValueError, TypeError, OSError: As `TextEncoder`; something else than texts.
            ImportError: The package `tokenizers` is not installed.
        """
        as_texts(X)
        self._check()
        self.text_encoder_, self._settings = self._build(), self._current()
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Vectors of texts; `fit` is not needed before.

        Args:
            X: As in `fit`.

        Returns:
            float32 [N, D], or a table if `set_output` says so.
        """
        texts = as_texts(X)
        self._check()
        vectors: npt.NDArray[np.float32] = self._model().encode(
            texts, batch_size=self.batch_size, normalize_embeddings=self.normalize, on_truncation=self.on_truncation
        )
        return vectors

    def _check(self) -> None:
        as_bool("normalize", self.normalize)
        as_positive("batch_size", self.batch_size)
        if self.encoder is None:
            raise ValueError("encoder: got None, expected a SparseMixer or a folder")

    def _current(self) -> tuple[Any, ...]:
        return (self.encoder, self.tokenizer, self.pooling, self.max_seq_length)

    def _build(self) -> TextEncoder:
        return TextEncoder(self.encoder, self.tokenizer, pooling=self.pooling, max_seq_length=self.max_seq_length)

    def _model(self) -> TextEncoder:
        """The text encoder with the settings as they are now: that of `fit`, unless they have changed since."""
        kept = zip(getattr(self, "_settings", ()), self._current(), strict=False)
        if hasattr(self, "text_encoder_") and all(old is new or old == new for old, new in kept):
            found: TextEncoder = self.text_encoder_
            return found
        return self._build()

    @property
    def _n_features_out(self) -> int:
        return self._model().get_embedding_dimension()

    def __sklearn_tags__(self) -> Any:
        tags = text_tags(super().__sklearn_tags__())
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return True
