"""Bugs in the core, which a build for tests makes on request (`make test-checked`), are ordinary exceptions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import _native, gradients, models, optimizers, schedules

pytestmark = pytest.mark.skipif(
    not hasattr(_native, "inject_panic"), reason="a release cannot be made to panic; see `make test-checked`"
)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_panic_anywhere_is_an_internal_error(threads: int, capfd: Any) -> None:
    encoder, inputs = small_encoder(num_threads=threads, mixing_mechanism="fourier"), small_inputs()
    expected = encoder(inputs)
    d_outputs = {"sequence_output": np.ones_like(expected["sequence_output"])}
    gradients = encoder.vjp(inputs, seed=1)[1](d_outputs)
    tasks: list[int] = []
    messages: set[str] = set()
    for differentiable in (False, True):
        for task in range(1000):
            _native.inject_panic(task)
            try:
                if differentiable:
                    encoder.vjp(inputs, seed=1)[1](d_outputs)
                else:
                    encoder(inputs)
            except sparse_mixer.InternalError as error:
                messages.add(str(error).partition(";")[0])
            else:
                tasks.append(task)
                break
            finally:
                _native.inject_panic(None)
            assert_same_outputs(encoder(inputs), expected)
    assert messages == {"internal error: injected"}
    again = encoder.vjp(inputs, seed=1)[1](d_outputs)
    for key in gradients:
        np.testing.assert_array_equal(again[key], gradients[key])
    assert min(tasks) > 5
    capfd.readouterr()  # Rust's own words about each panic


def test_a_panic_in_an_update_can_be_repaired(capfd: Any) -> None:
    """Whole or unusable, never half; new weights make the encoder usable again."""
    encoder, inputs = small_encoder(num_threads=1), small_inputs()
    expected, weights = encoder(inputs), encoder.get_weights()
    ones = {v.key: np.ones(v.shape, np.float32) for v in encoder.weights}
    broken = 0
    for task in range(10_000):
        optimizer = optimizers.AdamW(1.0)
        _native.inject_panic(task, place="elsewhere")
        try:
            optimizer.apply_gradients(encoder, ones)
            break
        except sparse_mixer.InternalError:
            pass
        finally:
            _native.inject_panic(None, place="elsewhere")
        try:
            assert_same_outputs(encoder(inputs), expected)
        except sparse_mixer.InternalError as error:
            broken += "left them unusable" in str(error)
        encoder.set_weights(weights)
        assert_same_outputs(encoder(inputs), expected)
    assert broken > 5
    capfd.readouterr()


def test_a_panic_while_loading_and_saving(tmp_path: Path, capfd: Any) -> None:
    encoder, inputs = small_encoder(num_threads=1), small_inputs()
    expected = encoder(inputs)
    path = tmp_path / "weights.safetensors"
    encoder.save(path)
    content = path.read_bytes()
    works: list[Callable[[], Any]] = [
        lambda: encoder.save(path),
        lambda: encoder.load_weights(path),
        lambda: encoder.set_weights(encoder.get_weights()),
        lambda: sparse_mixer.SparseMixer.load(path),
        lambda: small_encoder(),
    ]
    for work in works:
        for task in (0, 1, 7):
            _native.inject_panic(task, place="elsewhere")
            with pytest.raises(sparse_mixer.InternalError, match="injected"):
                work()
            _native.inject_panic(None, place="elsewhere")
            assert path.read_bytes() == content
            assert_same_outputs(encoder(inputs), expected)
    capfd.readouterr()


def test_a_panic_before_or_after_the_core(tmp_path: Path, capfd: Any) -> None:
    """Reading arguments and making results may have bugs, too."""
    path = tmp_path / "weights.safetensors"
    expected = small_encoder(num_threads=1)(small_inputs())

    def everything() -> None:
        encoder = small_encoder(num_threads=1)
        outputs, vjp = encoder.vjp(small_inputs(), seed=1)
        into = gradients.Gradients(encoder)
        vjp({"pooled_output": outputs["pooled_output"]}, into=into)
        into.set("pooler_transform/bias", into["pooler_transform/bias"])
        optimizer = optimizers.AdamW(schedules.CosineDecay(1e-3, 10), global_clipnorm=1.0)
        optimizer.apply_gradients(encoder, into)
        optimizer.set_state(*optimizer.get_state(), encoder)
        encoder.save(path)
        encoder.load_weights(path)
        encoder.load_weights(dict(zip([v.key for v in encoder.weights], encoder.get_weights(), strict=True)))
        assert encoder.memory_estimate(2) > encoder.quantize("int8").weight_bytes
        sparse_mixer.SparseMixer.load(path)(small_inputs(), outputs=("routing",))
        model = models.BertClassifier(encoder, 2, seed=0)
        model.loss_and_gradients((small_inputs(), np.array([0, 1])), seed=0)
        model.set_weights(model.get_weights())

    messages: set[str] = set()
    for call in range(1000):
        _native.inject_panic(call, place="entry")
        try:
            everything()
            break
        except sparse_mixer.InternalError as error:
            messages.add(str(error).partition(";")[0])
        finally:
            _native.inject_panic(None, place="entry")
        assert_same_outputs(small_encoder(num_threads=1)(small_inputs()), expected)
    assert messages == {"internal error: injected"}
    assert 30 < call < 999
    capfd.readouterr()
