"""The heads of TensorFlow's models in TensorFlow's files: which tensor is which weight of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparse_mixer._native import CheckpointError
from sparse_mixer.checkpoints.weight_files import WeightFile

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# Positions of a layer's weights in `.weights.h5`.
_NUMBERS = {"kernel": 0, "bias": 1, "gamma": 0, "beta": 1}
# Our names of the layers within a head, and Keras's attributes.
_LAYERS = {
    "pooler_dense": "dense",
    "logits": "out_proj",
    "dense": "dense",
    "LayerNorm": "layer_norm",
}
# The bias of a masked language model belongs to the layer itself, behind the word table that it shares.
_OUTPUT_BIAS = "output_bias.Sbias"
_OUTPUT_BIAS_NUMBER = 1


def found(file: WeightFile, model: Any) -> dict[str, int] | None:
    """Where in a file of TensorFlow the weights of the heads are, by our keys; None in files of other kinds.

    Args:
        file: A checkpoint, a SavedModel, or an HDF5 file of Keras.
        model: The model that has the heads.

    Raises:
        CheckpointError: A weight is not there, has another shape, or there are several that may be it.
    """
    if file.format not in ("tensor_bundle", "h5", "keras"):
        return None
    entries = file.entries()
    names = getattr(file, "paths", lambda: None)() or [name for name, _, _ in entries]
    places = {}
    for number, head in enumerate(model.heads.values()):
        for variable in head.all_variables:
            endings = list(_endings(model, head, number, variable.key))
            places[variable.key] = _one(file.path, names, entries, endings, variable)
    return places


def weights_h5_names(model: Any) -> dict[str, str]:
    """The names of the heads' weights in the ``.weights.h5`` of the reference's model, by our keys."""
    return {
        variable.key: _in_weights_h5(model, head, number, variable.key)
        for number, head in enumerate(model.heads.values())
        for variable in head.all_variables
    }


def _one(path: str, names: Sequence[str], entries: Sequence[Any], endings: Sequence[str], variable: Any) -> int:
    """The entry whose name ends as the first of `endings` that any does."""
    shapes = []
    for ending in endings:
        fitting = [i for i, name in enumerate(names) if name == ending or name.endswith(f"/{ending}")]
        shapes += [tuple(entries[i][2]) for i in fitting]
        fitting = [i for i in fitting if tuple(entries[i][2]) == variable.shape]
        # The one nearest to the top is the model's own.
        fitting.sort(key=lambda i: names[i].count("/"))
        if len(fitting) > 1 and names[fitting[0]].count("/") == names[fitting[1]].count("/"):
            raise CheckpointError(
                f"{path}: {names[fitting[0]]} and {names[fitting[1]]} may both be {variable.key}; load a file with one "
                "such head"
            )
        if fitting:
            return fitting[0]
    described = f"expected shape {variable.shape}, found {shapes or 'none'}"
    raise CheckpointError(f"{path}: the weights do not fit this model's heads: {variable.key} ({described})")


def _endings(model: Any, head: Any, number: int, key: str) -> Iterator[str]:
    """What the name of our weight `key` may end with, the usual one first, in all of Keras's formats."""
    layer, leaf = key.split("/")[-2:]
    # Legacy HDF5 files have the variables' own names.
    yield f"{key}:0"
    yield f"{'/'.join(key.split('/')[1:])}:0" if type(model).__name__ == "BertSpanLabeler" else f"{head.name}/{key}:0"
    yield _in_weights_h5(model, head, number, key)
    kind = type(model).__name__
    if key == "cls/predictions/output_bias/bias":
        yield f"masked_lm/{_OUTPUT_BIAS}{_SUFFIX}"
        # The path of the object in a SavedModel.
        yield f"masked_lm/output_bias/bias{_SUFFIX}"
        return
    if head.name == "cls/predictions":
        yield f"masked_lm/{_LAYERS[layer]}/{leaf}{_SUFFIX}"
        return
    if kind == "BertTokenClassifier":
        places = ["layer_with_weights-1", "classifier"]
    elif kind == "BertSpanLabeler":
        places = ["layer_with_weights-1/layer_with_weights-0", "span_labeling/layer_with_weights-0"]
    elif kind == "BertPretrainerV2":
        # The masked language model is the first of our heads.
        places = [f"classification_heads/{number - 1}/{_LAYERS[layer]}", f"{head.name}..{layer}"]
    else:
        attribute = _LAYERS[layer]
        places = [f"layer_with_weights-1/{attribute}", f"classifier/{attribute}", f"{head.name}..{layer}"]
    yield from (f"{place}/{leaf}{_SUFFIX}" for place in places)


def _in_weights_h5(model: Any, head: Any, number: int, key: str) -> str:
    layer, leaf = key.split("/")[-2:]
    kind = type(model).__name__
    if key == "cls/predictions/output_bias/bias":
        return f"masked_lm/vars/{_OUTPUT_BIAS_NUMBER}"
    if head.name == "cls/predictions":
        return f"masked_lm/{_LAYERS[layer]}/vars/{_NUMBERS[leaf]}"
    if kind == "BertTokenClassifier":
        return f"layers/dense/vars/{_NUMBERS[leaf]}"
    if kind == "BertSpanLabeler":
        return f"span_labeling/layers/dense/vars/{_NUMBERS[leaf]}"
    counted = f"_{number - 1}" if kind == "BertPretrainerV2" and number > 1 else ""
    return f"layers/classification_head{counted}/{_LAYERS[layer]}/vars/{_NUMBERS[leaf]}"
