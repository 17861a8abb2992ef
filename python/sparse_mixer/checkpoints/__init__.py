"""Saving and loading encoders.

Our own format is a safetensors file with the configuration and checksums in its header; `SparseMixer.save` and
`SparseMixer.load` use it. Weights alone are read from many formats (see `sparse_mixer.SparseMixer.load_weights`) and
written as ``.weights.h5``, which TensorFlow reads, and ``.npz``.

No file is ever executed: readers look at tensors and at a configuration whose keys and names come from a closed list.
"""

from __future__ import annotations

from sparse_mixer._native import CheckpointError
from sparse_mixer.checkpoints.encoder_files import (
    from_flax,
    from_preset,
    load,
    load_report,
    load_weights,
    open_flax,
    read_adam_state,
    save,
)
from sparse_mixer.checkpoints.report import LoadReport, Mismatch

__all__ = [
    "CheckpointError",
    "LoadReport",
    "Mismatch",
    "from_flax",
    "from_preset",
    "load",
    "load_report",
    "load_weights",
    "open_flax",
    "read_adam_state",
    "save",
]
