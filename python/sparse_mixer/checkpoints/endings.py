"""Formats by the endings of names."""

from __future__ import annotations

from collections.abc import Sequence

# Formats that others write under these names: what is written must not pretend to be one of them.
_FOREIGN_ENDINGS = (
    ".h5",
    ".hdf5",
    ".keras",
    ".ckpt",
    ".index",
    ".pt",
    ".pth",
    ".bin",
    ".pkl",
    ".msgpack",
    ".zip",
    ".tar",
)
_ENDINGS = {"safetensors": ".safetensors", "npz": ".npz", "weights_h5": ".weights.h5"}


def format_of(path: str, formats: Sequence[str]) -> str:
    """The one of `formats` that the ending of `path` stands for; safetensors where it stands for none.

    Raises:
        ValueError: The ending is that of another format.
    """
    for kind in formats:
        if path.endswith(_ENDINGS[kind]):
            return kind
    if path.endswith(_FOREIGN_ENDINGS):
        *others, last = [_ENDINGS[kind] for kind in formats]
        raise ValueError(
            f"path: {path!r} has the ending of a format that is not written here; use {', '.join(others)} or {last}"
        )
    return "safetensors"
