"""What a `TextEncoder`'s vectors depend on, as short texts that can be compared and stored."""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from typing import Any

import numpy as np

from sparse_mixer.networks import SparseMixer
from sparse_mixer.text.dense import Dense
from sparse_mixer.text.encoder import TextEncoder

# The digest of an encoder's weights, and the version that it is of: a large model takes a second.
_known: weakref.WeakKeyDictionary[SparseMixer, tuple[int, str]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def digest(value: Any) -> str:
    """A short text that differs where values of JSON differ."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()


def fingerprint(model: TextEncoder) -> dict[str, Any]:
    """What the vectors of a text depend on, by name: digests of weights and tokenizer, and settings."""
    tokenizer = json.loads(model.tokenizer.to_str())
    # These are not heeded.
    tokenizer["truncation"] = tokenizer["padding"] = None
    return {
        "weights": _weights(model.encoder),
        "tokenizer": digest(tokenizer),
        "dtype": model.encoder.dtype,
        "pooling": list(model.pooling),
        "layers": [None if layer is None else _digest_of(layer) for layer in model.layers],
        "max_seq_length": model.max_seq_length,
        **model.settings(),
    }


def depends_on_batches(model: TextEncoder) -> bool:
    """Whether vectors depend on which texts stand in a batch: where texts compete for experts in groups."""
    arguments = model.encoder.arguments
    return arguments.semantics == "paper" and bool(arguments.layers_within("moe_layers"))


def _digest_of(layer: Dense) -> str:
    total = hashlib.blake2b(digest_size=16)
    for array in layer.weights():
        total.update(digest([list(array.shape), array.dtype.str]).encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _weights(encoder: SparseMixer) -> str:
    version = encoder.weights_version
    with _lock:
        found = _known.get(encoder)
    if found is not None and found[0] == version:
        return found[1]
    config = {name: value for name, value in encoder.get_config().items() if name not in ("seed", "initializer")}
    total = hashlib.blake2b(digest(config).encode(), digest_size=16)
    for variable in encoder.weights:
        total.update(variable.key.encode())
        total.update(variable.numpy().data)
    with _lock:
        _known[encoder] = (version, total.hexdigest())
    return total.hexdigest()
