"""Encoders with heads, named as in ``tfm.nlp.models``, that can be trained.

Every model is called on the encoder's inputs and gives what its namesake gives. For training, a batch is

* ``(inputs, labels)`` or ``(inputs, labels, sample_weight)`` for `BertClassifier`, `BertTokenClassifier` and
  `BertSpanLabeler`,
* one dict of inputs and labels for `BertPretrainerV2`, under the Model Garden's keys.

The loss that is minimised is the mean cross entropy (squared error for one class) plus the encoder's auxiliary losses.
Sample weights count as in Keras: each is a factor of its example's loss, and the sum is divided by the number of
examples or labelled tokens, not by the weights. A batch whose labels all weigh nothing teaches nothing: `fit` skips it.

Examples:
    >>> import numpy as np
    >>> from sparse_mixer import SparseMixer, models, optimizers
    >>> encoder = SparseMixer(100, hidden_size=16, num_layers=2, inner_dim=32, max_sequence_length=8, seed=0)
    >>> model = models.BertClassifier(encoder, num_classes=3)
    >>> ids = np.arange(32, dtype=np.int32).reshape(4, 8)
    >>> inputs = dict(input_word_ids=ids, input_mask=np.ones_like(ids), input_type_ids=np.zeros_like(ids))
    >>> labels = np.array([0, 1, 2, 0])
    >>> history = model.fit((inputs, labels), optimizer=optimizers.AdamW(1e-3), epochs=2, progress=False)
    >>> model(inputs).shape
    (4, 3)

``model.save(path)`` and ``BertClassifier.load(path)`` keep encoder and heads in one file.
"""

from __future__ import annotations

from sparse_mixer.models.base import Model
from sparse_mixer.models.classifier import BertClassifier
from sparse_mixer.models.head_layers import ClassificationHead
from sparse_mixer.models.pretrainer import BertPretrainerV2
from sparse_mixer.models.span_labeler import BertSpanLabeler
from sparse_mixer.models.token_classifier import BertTokenClassifier

__all__ = [
    "BertClassifier",
    "BertPretrainerV2",
    "BertSpanLabeler",
    "BertTokenClassifier",
    "ClassificationHead",
    "Model",
]
