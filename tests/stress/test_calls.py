"""Random calls, bad and odd ones: a `ValueError` or `TypeError` that changes nothing, or the right answer."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import ARGUMENTS, LENGTH, TYPES, VOCAB_SIZE, small_encoder, small_inputs
from hypothesis import given
from hypothesis import strategies as st
from odd_values import FORMS, REFUSED, assert_helps, many, odd_arrays, odd_values
from sparse_mixer import (
    gradients,
    initializers,
    layouts,
    masking,
    models,
    optimizers,
    plots,
    schedules,
    text,
)
from sparse_mixer.training import callbacks

ENCODER = small_encoder(num_threads=1)
EXPECTED = ENCODER(small_inputs())["sequence_output"].tobytes()


def canonical(inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The inputs as plain arrays, or None if they are not valid. Independent of the package's own checks."""
    plain = {}
    for name, limit in (("input_word_ids", VOCAB_SIZE), ("input_type_ids", TYPES), ("input_mask", None)):
        try:
            array = np.asarray(inputs[name])
            # Objects count as what they are.
            array = np.array(array.tolist()) if array.dtype.kind == "O" else array
        except Exception:
            return None
        if array.ndim != 2 or array.dtype.kind not in ("iuf" if limit else "iufb") or array.dtype.itemsize > 8:
            return None
        values = array.astype(np.float64)
        if not np.isfinite(values).all() or array.shape[1] != LENGTH:
            return None
        if limit and not ((values == np.trunc(values)) & (values >= 0) & (values < limit)).all():
            return None
        plain[name] = values.astype(np.int64 if limit else np.float32)
    return (
        plain
        if len({array.shape for array in plain.values()}) == 1 and np.isfinite(plain["input_mask"]).all()
        else None
    )


@many
@given(st.data())
def test_calls(data: st.DataObject) -> None:
    inputs: dict[str, Any] = small_inputs(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 9)))
    for name in data.draw(st.lists(st.sampled_from(list(inputs)), unique=True)):
        if data.draw(st.booleans()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's, of matrices
                inputs[name] = data.draw(st.sampled_from(FORMS))(inputs[name])
        else:
            inputs[name] = data.draw(odd_arrays())
    plain = canonical(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of odd conversions
        try:
            outcome = result = ENCODER(inputs)["sequence_output"]
        except REFUSED as error:
            outcome, result = error, None
    if plain is None:
        assert isinstance(outcome, Exception), "accepted"
    else:
        assert result is not None, outcome
        assert result.tobytes() == ENCODER(plain)["sequence_output"].tobytes()
    assert ENCODER(small_inputs())["sequence_output"].tobytes() == EXPECTED


# Constructor ----------------------------------------------------------------------------------------------------------


@many
@given(
    st.dictionaries(
        st.sampled_from(
            [
                *ARGUMENTS,
                "dtype",
                "examples_per_group",
                "train_capacity_factor",
                "use_fft",
                "mixing_mechanism",
                "inner_activation",
                "initializer",
                "output_range",
                "embedding_width",
                "norm_first",
                "max_group_size",
                "semantics",
                "num_threads",
                "isa",
                "jitter_noise",
                "output_dropout",
                "trainable",
            ]
        ),
        odd_values(),
        min_size=1,
        max_size=2,
    )
)
def test_constructor(changes: dict[str, Any]) -> None:
    large = [key for key in changes if isinstance(changes[key], (int, np.integer)) and abs(int(changes[key])) > 1000]
    if any(0 < int(changes[key]) < 2**40 for key in large if key not in ("seed", "num_threads")):
        return  # valid, perhaps, but too much for the machine of a test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encoder = sparse_mixer.SparseMixer(**(ARGUMENTS | changes))
        except REFUSED:
            return
        # What was accepted can be written down, made again and called.
        again = sparse_mixer.SparseMixer.from_config(encoder.get_config())
        length = encoder.arguments.max_sequence_length
        ids = np.zeros((2, length), np.int32)
        inputs = {"input_word_ids": ids, "input_mask": ids + 1, "input_type_ids": ids}
        try:
            outputs = encoder(inputs)
        except ValueError:
            with pytest.raises(ValueError, match=r"."):
                again(inputs)
            return
        again.set_weights(encoder.get_weights())
        np.testing.assert_array_equal(again(inputs)["pooled_output"], outputs["pooled_output"])


# Everything else ------------------------------------------------------------------------------------------------------

MODEL = models.BertClassifier(ENCODER, 2, seed=0)
LABELLED = (small_inputs(), np.array([0, 1]))
OUTPUTS, VJP = ENCODER.vjp(small_inputs(), seed=0, persistent=True)
GRADIENTS = VJP({"pooled_output": OUTPUTS["pooled_output"]})
TABLE = ENCODER.get_embedding_table()
ROUTING = ENCODER(small_inputs(), outputs=("routing",))["routing"][0]
SPANS, TOKENS = models.BertSpanLabeler(ENCODER, seed=0), models.BertTokenClassifier(ENCODER, 2, seed=0)
BUFFERS = gradients.Gradients(ENCODER)


def _with(name: str, value: Any) -> dict[str, Any]:
    return small_inputs() | {name: value}


# Calls of one odd value; none may change the encoder, so what would change it is called on another.
SURFACE: dict[str, Callable[[Any], Any]] = {
    "call": lambda x: ENCODER(x),
    "call with embeddings": lambda x: ENCODER(_with("input_word_embeddings", x)),
    "call with dense inputs": lambda x: ENCODER(_with("dense_inputs", x)),
    "training": lambda x: ENCODER(small_inputs(), training=x),
    "seed": lambda x: ENCODER(small_inputs(), training=True, seed=x),
    "outputs": lambda x: ENCODER(small_inputs(), outputs=x),
    "check_finite": lambda x: ENCODER(small_inputs(), check_finite=x),
    "vjp": lambda x: ENCODER.vjp(x),
    "recompute": lambda x: ENCODER.vjp(small_inputs(), recompute=x),
    "persistent": lambda x: ENCODER.vjp(small_inputs(), persistent=x),
    "cotangent": lambda x: VJP({"sequence_output": x}),
    "cotangents": lambda x: VJP(x),
    "cotangents of blocks": lambda x: VJP({"encoder_outputs": x}),
    "aux_loss_weight": lambda x: VJP({}, x),
    "into": lambda x: VJP({}, into=x),
    "set_weights": lambda x: small_encoder().set_weights(x),
    "one weight": lambda x: small_encoder().set_weights([x, *ENCODER.get_weights()[1:]]),
    "variable": lambda x: small_encoder().get_embedding_table().assign(x),
    "lookup": lambda x: ENCODER.get_embedding_layer()(x),
    "num_threads": lambda x: setattr(small_encoder(), "num_threads", x),
    "memory_estimate": lambda x: ENCODER.memory_estimate(x),
    "memory_estimate of outputs": lambda x: ENCODER.memory_estimate(1, outputs=x),
    "astype": lambda x: ENCODER.astype(x),
    "quantize": lambda x: ENCODER.quantize(x),
    "load_weights": lambda x: small_encoder().load_weights(x if isinstance(x, dict) else {"a": x}),
    "load_weights strict": lambda x: small_encoder().load_weights({}, strict=x),
    "load_report": lambda x: ENCODER.load_report({"pooler_transform/kernel": x}),
    "trainable": lambda x: setattr(small_encoder(), "trainable", x),
    "gradient": lambda x: BUFFERS.set("pooler_transform/bias", x),
    "apply_gradients": lambda x: optimizers.SGD().apply_gradients(small_encoder(), {"pooler_transform/bias": x}),
    "gradients": lambda x: optimizers.SGD().apply_gradients(small_encoder(), x),
    "target": lambda x: optimizers.SGD().apply_gradients(x, GRADIENTS),
    "scale": lambda x: optimizers.SGD().apply_gradients(small_encoder(), GRADIENTS, scale=x),
    "learning_rate": lambda x: optimizers.AdamW(x).apply_gradients(small_encoder(), GRADIENTS),
    "beta": lambda x: optimizers.AdamW(beta_1=x),
    "clipnorm": lambda x: optimizers.AdamW(global_clipnorm=x).apply_gradients(small_encoder(), GRADIENTS),
    "state": lambda x: optimizers.AdamW().set_state(x, {}),
    "moments": lambda x: optimizers.AdamW().set_state(0, x),
    "schedule": lambda x: schedules.CosineDecay(x, 10)(1),
    "step": lambda x: schedules.CosineDecay(1.0, 10)(x),
    "labels": lambda x: MODEL.loss_and_gradients((small_inputs(), x), seed=0),
    "batch": lambda x: MODEL.loss_and_gradients(x, seed=0),
    "num_classes": lambda x: models.BertClassifier(ENCODER, x, seed=0),
    "encoder of a model": lambda x: models.BertClassifier(x, 2, seed=0),
    "mask_tokens": lambda x: masking.mask_tokens(
        small_inputs(), seed=0, mask_id=x, vocab_size=VOCAB_SIZE, special_ids=[], max_predictions=2
    ),
    "set_num_threads": lambda x: (sparse_mixer.set_num_threads(x), sparse_mixer.set_num_threads(None)),
    "from_config": lambda x: sparse_mixer.SparseMixer.from_config(x),
    "layers of a layout": lambda x: layouts.middle(x, 2),
    "count of a layout": lambda x: [choose(8, x) for choose in layouts.LAYOUTS.values()],
    "layout": lambda x: layouts.layer_indices(x, 4, 2),
    "labels of spans": lambda x: SPANS.loss_and_gradients((small_inputs(), x), seed=0),
    "labels of tokens": lambda x: TOKENS.loss_and_gradients((small_inputs(), x), seed=0),
    "EarlyStopping": lambda x: callbacks.EarlyStopping(x),
    "mode": lambda x: callbacks.EarlyStopping("loss", mode=x),
    "padding_share": lambda x: text.padding_share(x),
    "padding_share of a mask": lambda x: text.padding_share({"input_mask": x}),
    "combine_weights": lambda x: plots.combine_weights(x),
    "combine_weights of indices": lambda x: plots.combine_weights({**ROUTING, "indices": x}),
    "combine_weights of probabilities": lambda x: plots.combine_weights({**ROUTING, "probabilities": x}),
    "LAMB": lambda x: optimizers.LAMB(beta_2=x).apply_gradients(small_encoder(), GRADIENTS),
    "Adafactor": lambda x: optimizers.Adafactor(x).apply_gradients(small_encoder(), GRADIENTS),
    "initializer": lambda x: initializers.TruncatedNormal(x),
    "stddev": lambda x: small_encoder(initializer=initializers.RandomNormal(stddev=x)),
}
# Where Python itself or a mapping answers, its own exceptions are the right ones.
# The arguments that a message may name; where nothing stands here, the name of the call.
NAMES: dict[str, tuple[str, ...]] = {
    "call": ("inputs", "input_word_ids", "batch"),
    "call with embeddings": ("input_word_embeddings",),
    "call with dense inputs": ("dense_inputs",),
    "vjp": ("inputs", "input_word_ids", "batch"),
    "cotangent": ("sequence_output",),
    "cotangents": ("d_outputs", "sequence_output", "pooled_output", "encoder_outputs"),
    "cotangents of blocks": ("encoder_outputs",),
    "set_weights": ("weights", "word_embeddings/embeddings"),
    "one weight": ("weights",),
    "variable": ("weights", "word_embeddings/embeddings"),
    "lookup": ("ids",),
    "memory_estimate": ("batch",),
    "memory_estimate of outputs": ("outputs",),
    "astype": ("dtype",),
    "quantize": ("dtype",),
    "load_weights": ("the mapping of weights", "source"),
    "load_weights strict": ("strict", "the mapping of weights"),
    "load_report": ("the mapping of weights", "source"),
    "gradient": ("pooler_transform/bias",),
    "apply_gradients": ("pooler_transform/bias",),
    "beta": ("beta_1",),
    "clipnorm": ("global_clipnorm",),
    "state": ("iterations",),
    "schedule": ("initial_learning_rate",),
    "labels": ("labels",),
    "batch": ("batch", "labels", "inputs", "sample_weight", "input_word_ids"),
    "num_classes": ("num_classes", "config"),
    "encoder of a model": ("network",),
    "mask_tokens": ("mask_id",),
    "set_num_threads": ("num_threads",),
    "from_config": ("config", "vocab_size", "argument"),
    "layers of a layout": ("num_layers",),
    "count of a layout": ("count",),
    "layout": ("layout",),
    "labels of spans": ("labels",),
    "labels of tokens": ("labels",),
    "EarlyStopping": ("monitor",),
    "padding_share": ("inputs", "input_mask"),
    "padding_share of a mask": ("inputs", "input_mask"),
    "combine_weights": ("routing",),
    "combine_weights of indices": ("routing",),
    "combine_weights of probabilities": ("routing",),
    "LAMB": ("beta_2",),
    "Adafactor": ("learning_rate",),
    "initializer": ("mean",),
}
ALSO = {"from_config": (KeyError,), "gradient": (KeyError,), "num_classes": (MemoryError,)}


@many
@given(st.sampled_from(sorted(SURFACE)), odd_arrays())
def test_surface(name: str, value: Any) -> None:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            SURFACE[name](value)
        except REFUSED as error:
            assert_helps(error, *NAMES.get(name, (name,)))
        except ALSO.get(name, ()):
            pass
        finally:
            sparse_mixer.set_num_threads(None)
    assert ENCODER(small_inputs())["sequence_output"].tobytes() == EXPECTED


# What Python's own unpickler raises at bytes that make no sense, and what ours does.
UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    OverflowError,
    MemoryError,
)


@pytest.mark.parametrize("place", range(0, 2000, 40))
def test_damaged_pickles(place: int) -> None:
    """Bytes of a pickle changed: a known exception, or a whole encoder; pickles are trusted, but not fragile."""
    data = bytearray(pickle.dumps(small_encoder(hidden_size=4, num_attention_heads=1, inner_dim=4)))
    data[place % len(data)] ^= 0x15
    try:
        loaded = pickle.load(io.BytesIO(bytes(data)))
        if not isinstance(loaded, sparse_mixer.SparseMixer):
            return  # the damage made a tuple or a number of it
        again = sparse_mixer.SparseMixer.from_config(loaded.get_config())
        again.set_weights(loaded.get_weights())
        inputs = small_inputs()
        expected = again(inputs)["sequence_output"]
    except UNREADABLE:
        return
    np.testing.assert_array_equal(loaded(inputs)["sequence_output"], expected)
