"""Classification of texts by a fine-tuned encoder, as an estimator of scikit-learn."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite, check_random_state, column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sparse_mixer import training
from sparse_mixer._core.checks import as_bool, as_float, as_positive
from sparse_mixer.models import BertClassifier
from sparse_mixer.optimizers import AdamW
from sparse_mixer.schedules import LinearWarmup, PolynomialDecay
from sparse_mixer.sklearn.texts import as_texts, text_tags
from sparse_mixer.text import TextEncoder, encode
from sparse_mixer.training.batches import split_batches

Floats = npt.NDArray[np.float32]


class SparseMixerClassifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a copy of an encoder with a head for classes: AdamW, warm-up, linear decay.

    Attributes:
        classes_: The labels, sorted.
        model_: The fitted `sparse_mixer.models.BertClassifier`.
        history_: What its `fit` returned.
        tokenizer_: The tokenizer.
    """

    def __init__(
        self,
        encoder: Any = None,
        tokenizer: Any = None,
        epochs: int = 3,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
        dropout_rate: float = 0.1,
        freeze_encoder: bool = False,
        class_weight: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        """Keep the settings; they are checked by `fit`.

        Args:
            encoder: A `SparseMixer`, of which every `fit` trains a copy; or a folder or file, as `TextEncoder` takes.
            tokenizer: As there; None for that of the folder.
            epochs: Passes over the texts.
            batch_size: Texts per update.
            learning_rate: The largest one, after the warm-up.
            weight_decay: Of AdamW.
            warmup_fraction: Share of the updates in which the learning rate rises.
            dropout_rate: Of the head.
            freeze_encoder: Whether only the head is trained.
            class_weight: A dict from label to weight, ``"balanced"``, or None.
            random_state: Of initial weights of the head, order and dropout: an int, a `RandomState`, or None.
            verbose: Whether to show progress.
        """
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction
        self.dropout_rate = dropout_rate
        self.freeze_encoder = freeze_encoder
        self.class_weight = class_weight
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train.

        Args:
            X: N texts: a list, an array or a series, or a table with one column.
            y: N labels of any type.
            sample_weight: N weights, or None.

        Raises:
            ValueError: Fewer than two classes, different lengths, settings that cannot work.
            FloatingPointError: The loss is NaN or infinite.
        """
        texts = as_texts(X)
        if y is None:
            raise ValueError("SparseMixerClassifier requires y to be passed, but the target y is None")
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_consistent_length(texts, labels, sample_weight)
        check_classification_targets(labels)
        classes, indices = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y: got one class, {classes.tolist()}, expected at least two")
        if self.encoder is None:
            raise ValueError("encoder: got None, expected a SparseMixer or a folder")
        epochs, batch_size = as_positive("epochs", self.epochs), as_positive("batch_size", self.batch_size)
        warmup = as_float("warmup_fraction", self.warmup_fraction)
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup_fraction: got {warmup}, expected 0 to 1")
        reader = TextEncoder(self.encoder, self.tokenizer)
        encoder = copy.deepcopy(reader.encoder)
        if as_bool("freeze_encoder", self.freeze_encoder):
            encoder.trainable = False
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=2)
        model = BertClassifier(
            encoder,
            len(classes),
            dropout_rate=self.dropout_rate,
            use_encoder_pooler=encoder.arguments.with_pooler,
            seed=int(seeds[0]),
        )
        weights = compute_sample_weight(self.class_weight, labels).astype(np.float32)
        if sample_weight is not None:
            weights *= np.asarray(sample_weight, np.float32)
        if not weights.any():
            raise ValueError("sample_weight: all weights are zero, with those of the classes")
        steps = epochs * math.ceil(len(texts) / batch_size)
        decay = PolynomialDecay(self.learning_rate, decay_steps=steps, end_learning_rate=0.0)
        schedule = LinearWarmup(decay, warmup_steps=round(warmup * steps)) if round(warmup * steps) else decay
        inputs = encode(reader.tokenizer, texts, encoder.arguments.max_sequence_length)
        self.history_ = training.fit(
            model,
            (inputs, indices.astype(np.int32), weights),
            optimizer=AdamW(schedule, weight_decay=self.weight_decay, global_clipnorm=1.0),
            epochs=epochs,
            batch_size=batch_size,
            seed=int(seeds[1]),
            progress=as_bool("verbose", self.verbose),
        )
        self.classes_, self.model_, self.tokenizer_ = classes, model, reader.tokenizer
        return self

    def decision_function(self, X: Any) -> Floats:
        """Logits float32 [N, C]; with two classes their difference [N], positive for the second."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The most likely label of each text."""
        places = self._logits(X).argmax(-1)
        labels: npt.NDArray[Any] = self.classes_[places]
        return labels

    def predict_log_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Logarithms of the probabilities, float64 [N, C]."""
        logits = self._logits(X).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logs: npt.NDArray[np.float64] = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return logs

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probabilities float64 [N, C], in the order of `classes_`."""
        probabilities: npt.NDArray[np.float64] = np.exp(self.predict_log_proba(X))
        return probabilities

    def _logits(self, X: Any) -> Floats:
        check_is_fitted(self, "model_")
        texts = as_texts(X)
        model: BertClassifier = self.model_
        if not texts:
            return np.zeros((0, len(self.classes_)), np.float32)
        arguments = model.encoder.arguments
        inputs = encode(self.tokenizer_, texts, arguments.max_sequence_length)
        group = max(1, math.ceil(arguments.group_examples()))
        size = math.ceil(as_positive("batch_size", self.batch_size) / group) * group
        return np.concatenate([model(batch) for batch in split_batches(inputs, size)])

    def __sklearn_tags__(self) -> Any:
        return text_tags(super().__sklearn_tags__())
