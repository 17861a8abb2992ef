"""Runs Keras's and the Model Garden's optimisers on small data and writes golden/optimizers.json.

Needs TensorFlow, tf-keras and tf-models-official. Parameters and gradients come from a formula that the Rust tests
repeat (`src/optim/tests`); double precision and settings that float32 holds exactly (Keras rounds them to it) make
the comparison tight. The paper's rule and schedule come from the JAX fixture `adamw_schedule.npz`, the first argument.
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf
import tf_keras
from official.modeling.optimization import lr_schedule
from official.modeling.optimization.lamb import LAMB
from official.modeling.optimization.legacy_adamw import AdamWeightDecay

SHAPES = {
    "dense/kernel": (3, 33),
    "dense/bias": (5,),
    "layer_norm/gamma": (4,),
    "experts/kernel": (2, 2, 34),
    "table/embeddings": (7, 3),
}
TABLE_ROWS = {0: [1, 4], 1: [0], 2: [2, 4, 6], 3: [], 4: [3, 5, 6]}
STEPS = len(TABLE_ROWS)
EXCLUDED = ["layer_norm", "bias"]


def values(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) from integer arithmetic, the same in any language."""
    state = (np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(1 + 1000 * seed)) * np.uint64(2654435761)
    return ((state % np.uint64(65536)).astype(np.float64) / 32768.0 - 1.0).reshape(shape)


def gradients(step: int, variables: list[tf.Variable]) -> list:
    """One gradient per variable; the table's has only the rows of TABLE_ROWS."""
    grads = []
    for index, (variable, shape) in enumerate(zip(variables, SHAPES.values(), strict=True)):
        grad = values(100 + 10 * step + index, shape)
        if index == len(SHAPES) - 1:
            rows = np.array(TABLE_ROWS[step], np.int64)
            grads.append(tf.IndexedSlices(tf.constant(grad[rows], variable.dtype), tf.constant(rows), shape))
        else:
            grads.append(tf.constant(grad, variable.dtype))
    return grads


def run(optimizer, dense: bool = False, dtype: tf.DType = tf.float64) -> dict[str, list[float]]:
    """Applies STEPS updates; returns the parameters, flattened. `dense` spreads the table's gradient out."""
    variables = [
        tf.Variable(values(index, shape), name=name, dtype=dtype) for index, (name, shape) in enumerate(SHAPES.items())
    ]
    if hasattr(optimizer, "build"):
        if EXCLUDED and getattr(optimizer, "weight_decay", None):
            optimizer.exclude_from_weight_decay(var_names=EXCLUDED)
        optimizer.build(variables)
    for step in range(STEPS):
        grads = gradients(step, variables)
        if dense:
            grads = [tf.convert_to_tensor(grad) for grad in grads]
        optimizer.apply_gradients(zip(grads, variables, strict=True))
    return {variable.name.split(":")[0]: variable.numpy().ravel().tolist() for variable in variables}


def schedules() -> list[dict]:
    """Keras's and the Model Garden's schedules beside our configuration of them."""
    keras = tf_keras.optimizers.schedules
    polynomial = {"initial_learning_rate": 0.5, "decay_steps": 20, "end_learning_rate": 0.125, "power": 2.0}
    cosine = {"initial_learning_rate": 0.5, "decay_steps": 16, "alpha": 0.25}
    line = {"initial_learning_rate": 1.0, "decay_steps": 24, "end_learning_rate": 0.0, "power": 1.0}
    ours_line = {"name": "polynomial_decay", **line}
    warmup = lr_schedule.LinearWarmup(keras.PolynomialDecay(**line), warmup_steps=8, warmup_learning_rate=0.0625)
    cases = [
        ({"name": "polynomial_decay", **polynomial}, keras.PolynomialDecay(**polynomial)),
        ({"name": "cosine_decay", **cosine}, keras.CosineDecay(**cosine)),
        (
            {"name": "linear_warmup", "after": ours_line, "warmup_steps": 8, "warmup_learning_rate": 0.0625},
            warmup,
        ),
    ]
    return [{"config": c, "rates": [float(s(step)) for step in range(30)]} for c, s in cases]


def paper(path: str) -> dict:
    """The JAX fixture as lists: parameters and gradients of every step, flattened."""
    data = np.load(path)
    config = json.loads(str(data["config"]))
    names = ["a/kernel", "a/bias", "b/scale"]

    def flat(kind: str, step: int) -> dict[str, list[float]]:
        return {name: data[f"{kind}_step{step}/{name}"].ravel().tolist() for name in names}

    return {
        "config": {key: config[key] for key in ("b1", "b2", "eps", "weight_decay", "learning_rate")}
        | {key: config[key] for key in ("num_warmup_steps", "num_train_steps")},
        "shapes": {name: list(data[f"params_step0/{name}"].shape) for name in names},
        "learning_rates": data["learning_rates"].tolist(),
        "parameters": [flat("params", step) for step in range(config["steps"] + 1)],
        "gradients": [flat("grads", step) for step in range(config["steps"])],
    }


def main() -> None:
    """Writes the file."""
    opt = tf_keras.optimizers
    rate, decay = 2.0**-6, 0.25
    adam = {"beta_1": 0.875, "beta_2": 0.984375, "epsilon": 2.0**-22}
    cases = {
        "adamw": run(opt.AdamW(rate, weight_decay=decay, jit_compile=False, **adam)),
        "adamw_clip": run(opt.AdamW(rate, weight_decay=decay, global_clipnorm=2.0, jit_compile=False, **adam)),
        "lamb": run(LAMB(rate, weight_decay_rate=decay, exclude_from_weight_decay=EXCLUDED, **adam), dense=True),
        "adam_weight_decay": run(
            AdamWeightDecay(
                rate, weight_decay_rate=decay, exclude_from_weight_decay=EXCLUDED, gradient_clip_norm=1.0, **adam
            ),
            dense=True,
            dtype=tf.float32,  # the class multiplies by a float32 constant
        ),
        "sgd": run(opt.SGD(rate, weight_decay=decay, jit_compile=False)),
        "momentum": run(opt.SGD(rate, momentum=0.75, weight_decay=decay, jit_compile=False)),
        "nesterov": run(opt.SGD(rate, momentum=0.75, nesterov=True, weight_decay=decay, jit_compile=False)),
        "adafactor": run(opt.Adafactor(rate, weight_decay=decay, jit_compile=False), dense=True),
    }
    out = {"cases": cases, "schedules": schedules(), "paper": paper(sys.argv[1])}
    target = pathlib.Path(__file__).parent.parent / "golden" / "optimizers.json"
    target.write_text(json.dumps(json.loads(json.dumps(out), parse_float=lambda x: round(float(x), 12)), indent=None))


if __name__ == "__main__":
    main()
