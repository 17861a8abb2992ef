"""What a person sees at a prompt or in a notebook: pictures, short lines, whole signatures."""

from __future__ import annotations

import base64
import importlib
import inspect
import pickle
import pydoc
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import small_encoder, small_inputs
from sparse_mixer import models, optimizers, plots, training

PNG = b"\x89PNG"


def history() -> training.History:
    model = models.BertClassifier(small_encoder(), 2)
    data = (small_inputs(8), np.arange(8) % 2)
    run: training.History = model.fit(
        data, optimizer=optimizers.AdamW(), epochs=3, batch_size=4, validation_data=data, progress=False
    )
    return run


def shown(figure: Any) -> bytes:
    return base64.b64decode(figure._repr_mimebundle_()["image/png"])


def test_figures_show_themselves() -> None:
    pytest.importorskip("matplotlib")
    encoder = small_encoder()
    routing = encoder(small_inputs(), outputs=("routing",))["routing"]
    for figure in (history().plot(), plots.routing_figure(routing, encoder.aux_losses["moe_layers"])):
        assert shown(figure).startswith(PNG)
        assert base64.b64decode(figure._repr_html_().split("base64,")[1].split('"')[0]).startswith(PNG)
        assert shown(pickle.loads(pickle.dumps(figure))).startswith(PNG)


def test_figures_need_no_pyplot() -> None:
    pytest.importorskip("matplotlib")
    program = (
        "import sys; from sparse_mixer import training;"
        "f = training.History([{'loss': 1.0}], [(1.0, 0.1)]).plot(); assert f._repr_mimebundle_()['image/png'];"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_run_is_one_line() -> None:
    line = repr(history())
    assert len(line) < 200
    assert "\n" not in line
    assert line.startswith("<History of 3 epochs, 6 updates, loss ")
    assert "val_accuracy" in line
    assert repr(training.History()) == "<History of 0 epochs, 0 updates>"


def test_reprs_are_short() -> None:
    encoder = small_encoder()
    model = models.BertPretrainerV2(encoder, classification_heads=[models.ClassificationHead(0, 2)])
    classifier = models.BertClassifier(encoder, 2)
    _, vjp = encoder.vjp(small_inputs())
    data = (small_inputs(4), np.arange(4) % 2)
    metrics, gradients = classifier.loss_and_gradients(data, seed=0)
    run = training.Trainer(classifier, data, optimizer=optimizers.LAMB(), callbacks=[training.EarlyStopping("loss")])
    run.run()
    values = [
        encoder,
        model,
        vjp,
        metrics,
        gradients,
        run,
        run.optimizer,
        run.batches,
        *run._callbacks,
        run.history,
        encoder.metrics[0],
        encoder.weights[0],
        encoder.layers[2],
        encoder.load_report({w.key: w.numpy() for w in encoder.weights}),
        models.ClassificationHead(0, 2),
        training.JSONLLogger("log.jsonl"),
        training.CSVLogger("log.csv"),
    ]
    for value in values:
        assert len(repr(value)) < 300, type(value)
        assert " object at 0x" not in repr(value), type(value)
        assert "\n" not in repr(value), type(value)


MODULES = (
    "models",
    "training",
    "text",
    "optimizers",
    "schedules",
    "plots",
    "masking",
    "networks",
    "checkpoints",
    "layers",
)


def public_callables() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name in MODULES:
        module = importlib.import_module(f"sparse_mixer.{name}")
        for key, value in vars(module).items():
            origin = str(getattr(value, "__module__", ""))
            if key.startswith("_") or not origin.startswith("sparse_mixer") or "._core" in origin:
                continue
            if inspect.isclass(value):
                found += [
                    (f"{name}.{key}.{attribute}", member)
                    for attribute, member in inspect.getmembers(value, callable)
                    if not attribute.startswith("_") or attribute in ("__init__", "__call__")
                    if str(getattr(member, "__module__", "")).startswith("sparse_mixer")
                ]
            elif inspect.isfunction(value):
                found.append((f"{name}.{key}", value))
    return found


@pytest.mark.parametrize(
    ("name", "value"), public_callables(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_signatures_say_what_can_be_given(name: str, value: Any) -> None:
    """``**changes`` of `load` and its like stands for the constructor's arguments, and says so."""
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            assert parameter.name == "changes" or name.endswith("LearningRateSchedule.__init__"), name
            text = inspect.getdoc(value) or ""
            assert name.endswith("__init__") or "Arguments of the" in text or "`SparseMixer." in text, name
        assert parameter.kind is not inspect.Parameter.VAR_POSITIONAL, name


def test_help_of_fit_lists_every_argument() -> None:
    function, method = (inspect.signature(f).parameters for f in (training.fit, models.Model.fit))
    keras = (
        "x y batch_size epochs verbose callbacks validation_split validation_data shuffle class_weight sample_weight "
    )
    keras += (
        "initial_epoch steps_per_epoch validation_steps validation_batch_size validation_freq max_queue_size workers "
    )
    keras += "use_multiprocessing"
    assert [name for name in method if method[name].kind is not inspect.Parameter.KEYWORD_ONLY] == [
        "self",
        *keras.split(),
    ]
    assert {name for name in function if name not in ("model", "data")} <= set(method)
    for name in set(function) & set(method) - {"optimizer"}:
        assert method[name].default == function[name].default, name
    text = pydoc.render_doc(models.BertClassifier.fit)
    for name in ("epochs", "batch_size", "validation_data", "state_path", "accumulation_steps"):
        assert f"{name}:" in text
    assert sparse_mixer.SparseMixer.from_preset.__doc__
