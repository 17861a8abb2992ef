"""Arguments that all communicators of ours take."""

from __future__ import annotations

from sparse_mixer._core.checks import as_bool, as_positive


class Options:
    """How gradients are exchanged; see `Communicator`."""

    def __init__(self, bucket_bytes: int, wire_dtype: str, overlap: bool) -> None:
        self.bucket_bytes = as_positive("bucket_bytes", bucket_bytes)
        if wire_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"wire_dtype: expected 'float32' or 'bfloat16', got {wire_dtype!r}")
        self.wire_dtype = wire_dtype
        self.overlap = as_bool("overlap", overlap)
