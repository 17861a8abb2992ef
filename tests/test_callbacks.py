"""Early stopping and histories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder
from sparse_mixer import models, optimizers, schedules
from sparse_mixer.training import callbacks
from training_cases import labelled


def test_early_stopping_goes_back_to_the_best_weights() -> None:
    seen: list[Any] = []

    class Record(callbacks.Callback):
        def on_epoch_end(self, trainer: Any, logs: Any) -> None:
            seen.append((logs["val_loss"], trainer.model.get_weights()))

    model = models.BertClassifier(small_encoder(), 2, seed=0)
    stopping = callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    data, other = labelled(), (labelled()[0], 1 - labelled()[1])
    optimizer = optimizers.AdamW(1e-2)
    history = model.fit(
        data,
        optimizer=optimizer,
        epochs=50,
        validation_data=other,
        callbacks=[Record(), stopping],
        progress=False,
        seed=0,
    )
    assert len(history.epochs) < 50
    best = min(seen, key=lambda entry: entry[0])
    assert stopping.best == best[0]
    for a, b in zip(model.get_weights(), best[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_histories_are_written(tmp_path: Path) -> None:
    model = models.BertClassifier(small_encoder(), 2, seed=0)
    steps, epochs = callbacks.JSONLLogger(tmp_path / "steps.jsonl"), callbacks.CSVLogger(tmp_path / "epochs.csv")
    schedule = schedules.LinearWarmup(schedules.PolynomialDecay(1e-3, 6, 0.0), 2)
    optimizer = optimizers.AdamW(schedule, global_clipnorm=1.0)
    history = model.fit(labelled(), optimizer=optimizer, epochs=2, batch_size=8, callbacks=[steps, epochs], seed=0)
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["learning_rate"] for line in lines] == pytest.approx([schedule(step) for step in range(6)])
    assert all(line["gradient_norm"] > 0 for line in lines)
    for entry in (*lines, *history.epochs):
        loads = [entry[f"expert_load/1/{expert}"] for expert in range(4)]
        assert sum(loads) == pytest.approx(1.0, abs=1e-5)
        assert entry["expert_load_peak"] >= 4 * max(loads) - 1e-5
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 3
    figure = history.plot()
    drawn = {axes.get_ylabel().split()[0]: [line.get_ydata() for line in axes.lines] for axes in figure.axes}
    assert list(drawn) == ["loss", "accuracy", "share", "learning", "busiest"]
    np.testing.assert_array_equal(drawn["learning"][0], [rate for _, rate in history.steps])
    np.testing.assert_array_equal(drawn["busiest"][0], history.history["expert_load_peak"])
    np.testing.assert_array_equal(drawn["share"][0], history.history["router_confidence"])
    figure.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
