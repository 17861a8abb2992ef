"""Keras's calling convention: one dict of inputs, of anything numpy can view, to the arrays that the core takes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.arrays import as_array, as_float32, as_integers

KEYS = (
    "input_word_ids",
    "input_mask",
    "input_type_ids",
    "input_word_embeddings",
    "dense_inputs",
    "dense_mask",
    "dense_type_ids",
)

# What the entries of a list of arrays are, by their number.
_IN_ORDER: Mapping[int, tuple[str, ...]] = {
    3: KEYS[:3],
    4: (*KEYS[:3], "masked_lm_positions"),
    6: (*KEYS[:3], *KEYS[4:]),
    7: (*KEYS[:3], *KEYS[4:], "masked_lm_positions"),
}

# How alike, of 1, a key must be to one of these to be taken for a slip.
_MISSPELT = 0.88


class InputSpec(NamedTuple):
    """Name, shape (None: any size) and type of one input."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Inputs(NamedTuple):
    """Inputs as the core takes them: int32 or int64 ids, float32 masks and embeddings, C-contiguous.

    With `word_embeddings` there are no `word_ids`. The three dense parts come together or not at all.
    """

    word_ids: npt.NDArray[Any] | None
    mask: npt.NDArray[np.float32] | None
    type_ids: npt.NDArray[Any]
    word_embeddings: npt.NDArray[np.float32] | None
    dense_inputs: npt.NDArray[np.float32] | None
    dense_mask: npt.NDArray[np.float32] | None
    dense_type_ids: npt.NDArray[Any] | None


def specs(max_sequence_length: int, embedding_width: int, with_dense_inputs: bool) -> dict[str, InputSpec]:
    """What an encoder takes: three inputs of the full length, or six whose lengths add up to it."""
    length = None if with_dense_inputs else max_sequence_length
    names = ["input_word_ids", "input_mask", "input_type_ids"]
    if with_dense_inputs:
        names += ["dense_inputs", "dense_mask", "dense_type_ids"]
    return {
        name: InputSpec(name, (None, None, embedding_width), "float32")
        if name == "dense_inputs"
        else InputSpec(name, (None, length), "int32")
        for name in names
    }


def read(
    inputs: Any,
    *,
    needs_mask: bool,
    embedding_layer: Callable[[Any], Any] | None,
    pad_id: int | None,
) -> Inputs:
    """Check the dict's keys and convert what is in it.

    Ranges, lengths and finiteness are checked by the core, once.

    Args:
        inputs: The dict that the encoder was called with, or a table of pandas with such columns. Keys that are none
            of ours and unlike them are ignored.
        needs_mask: Whether a missing mask is an error.
        embedding_layer: The user's own word embeddings, called with ``input_word_ids``; None for the core's table.
        pad_id: Where word ids have this value, positions are padding if there is no mask.

    Raises:
        ValueError: Not a dict, a missing or misspelt entry, one that has no use without another that is missing, or
            an entry of a wrong rank.
        TypeError: An entry of a wrong type, such as fractional ids.
    """
    inputs = as_inputs(inputs)
    word_ids = _optional(inputs, "input_word_ids", _ids)
    word_embeddings = _optional(inputs, "input_word_embeddings", _embeddings)
    dense_inputs = _optional(inputs, "dense_inputs", _embeddings)
    mask = _optional(inputs, "input_mask", _mask)
    if dense_inputs is None:
        for key in ("dense_mask", "dense_type_ids"):
            if inputs.get(key) is not None:
                raise ValueError(f"{key}: given without dense_inputs, which it belongs to")
    if word_embeddings is not None:
        if word_ids is not None and word_ids.shape != word_embeddings.shape[:2]:
            expected, got = list(word_ids.shape), list(word_embeddings.shape)
            raise ValueError(f"input_word_embeddings: expected the positions of input_word_ids, {expected}, got {got}")
        # The embeddings replace them.
        word_ids = None
    else:
        if word_ids is None:
            word_ids = _required(inputs, "input_word_ids", _ids)
        if mask is None and pad_id is not None and (embedding_layer is not None or dense_inputs is not None):
            # The core finds padding itself where it gets ids and nothing else.
            mask = (word_ids != pad_id).astype(np.float32)
        if embedding_layer is not None:
            word_embeddings = _embeddings("embedding_layer(input_word_ids)", embedding_layer(word_ids))
            word_ids = None
    ids_tell = pad_id is not None and word_ids is not None and dense_inputs is None
    if mask is None and needs_mask and not ids_tell:
        mask = _required(inputs, "input_mask", _mask)
    take_mask = _required if needs_mask else _optional
    read_inputs = Inputs(
        word_ids=word_ids,
        mask=mask,
        type_ids=_required(inputs, "input_type_ids", _ids),
        word_embeddings=word_embeddings,
        dense_inputs=dense_inputs,
        dense_mask=None if dense_inputs is None else take_mask(inputs, "dense_mask", _mask),
        dense_type_ids=None if dense_inputs is None else _required(inputs, "dense_type_ids", _ids),
    )
    _refuse_misspelt(inputs)
    return read_inputs


def are_in_order(inputs: Any) -> bool:
    """Whether `inputs` are a list of arrays in the order that `as_inputs` reads."""
    return (
        isinstance(inputs, list | tuple)
        and len(inputs) in _IN_ORDER
        and all(len(getattr(entry, "shape", ())) in (2, 3) for entry in inputs)
    )


def as_inputs(inputs: Any, *, in_order: bool = False) -> Mapping[str, Any]:
    """The inputs as a mapping: a dict, or a table of pandas with a column per input.

    Args:
        inputs: What there is.
        in_order: Whether a list of arrays will do: word ids, mask and type ids, then perhaps dense inputs, their mask
            and their type ids, then perhaps the positions of masked words.

    Raises:
        ValueError: Anything else.
    """
    if in_order and are_in_order(inputs):
        return dict(zip(_IN_ORDER[len(inputs)], inputs, strict=True))
    if isinstance(inputs, Mapping):
        return inputs
    if hasattr(inputs, "columns") and hasattr(inputs, "__getitem__"):
        return {str(name): inputs[name] for name in inputs.columns}
    raise ValueError(f"inputs: expected a dict with the keys {', '.join(KEYS[:3])}, got {type(inputs).__name__}")


def _refuse_misspelt(inputs: Mapping[str, Any]) -> None:
    """Other keys are no business of an encoder's, unless one is meant to be an input that may be left out."""
    absent = [key for key in KEYS if inputs.get(key) is None]
    for name in inputs:
        if name in KEYS:
            continue
        if close := difflib.get_close_matches(str(name), absent, n=1, cutoff=_MISSPELT):
            raise ValueError(f"inputs: unknown key {name!r} (is {close[0]!r} meant?)")


def _optional(inputs: Mapping[str, Any], key: str, convert: Callable[[str, Any], Any]) -> Any:
    value = inputs.get(key)
    return None if value is None else convert(key, value)


def _required(inputs: Mapping[str, Any], key: str, convert: Callable[[str, Any], Any]) -> Any:
    value = inputs.get(key)
    if value is not None:
        return convert(key, value)
    if key in inputs:
        raise ValueError(f"{key}: got None, expected an array")
    given = [str(name) for name in inputs]
    unknown = [name for name in given if name not in KEYS]
    close = difflib.get_close_matches(key, unknown, n=1, cutoff=0.5)
    hint = f" (is {close[0]!r} meant to be it?)" if close else ""
    raise ValueError(f"{key}: missing from the inputs, which have the keys {given}{hint}")


def _ids(argument: str, value: Any) -> npt.NDArray[Any]:
    """Integers ``[batch, length]`` as int32 or int64."""
    array = as_integers(argument, value)
    return _plain(_of_rank(argument, array, 2, "[batch, length]"), array.dtype)


def _mask(argument: str, value: Any) -> npt.NDArray[np.float32]:
    return _plain(_of_rank(argument, as_float32(argument, value), 2, "[batch, length]"), np.float32)


def _embeddings(argument: str, value: Any) -> npt.NDArray[np.float32]:
    array = as_array(argument, value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{argument}: expected floating point numbers, got dtype {array.dtype}")
    return _plain(_of_rank(argument, array, 3, "[batch, length, embedding_width]"), np.float32)


def _plain(array: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The array in `dtype` as the core reads it: native byte order, C-contiguous, aligned; a copy only if it is not."""
    return np.require(array, dtype, ["C", "A", "E"])


def _of_rank(argument: str, array: npt.NDArray[Any], rank: int, shape: str) -> npt.NDArray[Any]:
    if array.ndim != rank:
        raise ValueError(f"{argument}: expected shape {shape}, got {list(array.shape)}")
    return array
