"""What the tests of training share: optimisers, labelled inputs, and a run in which everything is random."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from encoders import VOCAB_SIZE, WIDTH, small_encoder, small_inputs
from sparse_mixer import models, optimizers, schedules, training
from sparse_mixer.masking import mask_tokens
from sparse_mixer.training import callbacks

RULES = {
    "adamw": lambda: optimizers.AdamW(1e-3, global_clipnorm=1.0),
    "paper": lambda: optimizers.AdamW.paper(schedules.PaperSchedule(1e-3, 2, 100)),
    "lamb": lambda: optimizers.LAMB(1e-3),
    "sgd": lambda: optimizers.SGD(0.02, momentum=0.8, nesterov=True),
    "plain": lambda: optimizers.SGD(0.1),
    "adafactor": lambda: optimizers.Adafactor(1e-2),
}


def labelled(examples: int = 24, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Inputs whose label is told by the first word."""
    inputs = small_inputs(examples, seed)
    return inputs, (inputs["input_word_ids"][:, 0] >= VOCAB_SIZE // 2).astype(np.int64)


def masking(batch: dict[str, Any], seed: int) -> dict[str, Any]:
    return mask_tokens(batch, seed=seed, mask_id=1, vocab_size=VOCAB_SIZE, special_ids=range(4), max_predictions=3)


def assert_same_weights(one: Any, other: Any) -> None:
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def make_run(
    rule: str, folder: Path, stopper: callbacks.Callback | None = None, dtype: str = "float32", epochs: int = 3
) -> training.Trainer:
    """A run with everything random: shuffling, dropout, jitter, masking, accumulation."""
    encoder = small_encoder(jitter_noise=0.1, dtype=dtype)
    model = models.BertPretrainerV2(
        encoder, "gelu", classification_heads=[models.ClassificationHead(WIDTH, 2, dropout_rate=0.1)], seed=0
    )
    inputs, labels = labelled(20)
    return training.Trainer(
        model,
        inputs | {"next_sentence_labels": labels},
        optimizer=RULES[rule](),
        epochs=epochs,
        batch_size=3,
        seed=5,
        transform=masking,
        accumulation_steps=2,
        validation_data=masking(inputs | {"next_sentence_labels": labels}, 0),
        callbacks=[callbacks.EarlyStopping(patience=9), *([stopper] if stopper else [])],
        state_path=folder / "state.npz",
    )


class StopAfter(callbacks.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        trainer.stop = trainer.step == self.step


class SaveAfter(callbacks.Callback):
    def __init__(self, steps: Any, folder: Path) -> None:
        self.steps = {int(step) for step in steps}
        self.folder = folder

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        if trainer.step in self.steps:
            trainer.save(self.folder / f"stop-{trainer.step}.npz")


def digest(run: training.Trainer) -> str:
    """Of all losses, weights and moments."""
    arrays = [*run.model.get_weights(), *run.optimizer.get_state()[1].values()]
    return hashlib.sha256(repr(run.history).encode() + b"".join(array.tobytes() for array in arrays)).hexdigest()
