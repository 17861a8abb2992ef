"""Prints what `fit` gives with Keras 3 and the backend that KERAS_BACKEND names; tests run it by itself."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
import sparse_mixer

from tests.usage_patterns.sizes import ARGUMENTS, CLASSES, batch, labels


def main() -> None:
    encoder = sparse_mixer.SparseMixer(**ARGUMENTS, seed=1)
    rng = np.random.default_rng(0)
    encoder.set_weights([w + 0.1 * rng.standard_normal(w.shape).astype(np.float32) for w in encoder.get_weights()])
    layer = encoder.as_keras_layer("keras", name="mixer")
    head = keras.layers.Dense(CLASSES, kernel_initializer=keras.initializers.Constant(0.1), name="head")
    model = keras.Model(layer.inputs, head(layer(layer.inputs)["pooled_output"]))
    expected = encoder(batch())["pooled_output"]

    def pooled() -> np.ndarray:
        return keras.ops.convert_to_numpy(layer(batch())["pooled_output"])

    got = pooled()
    model.compile(keras.optimizers.AdamW(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(batch(), labels(), batch_size=4, epochs=5, shuffle=False, verbose=0).history["loss"]
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
        loaded = keras.models.load_model(Path(folder) / "model.keras")
    predicted, again = (m.predict(batch(), verbose=0) for m in (model, loaded))
    report = {
        "backend": keras.backend.backend(),
        "distance": float(np.abs(got - expected).max()),
        "losses": losses,
        "weights": [w.path for w in layer.weights],
        "saved": bool((predicted == again).all()),
        "back": bool(np.allclose(layer.to_encoder()(batch())["pooled_output"], pooled(), atol=1e-6)),
    }
    print(json.dumps(report))


main()
