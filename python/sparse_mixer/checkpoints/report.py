"""What a weight file offers of an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sparse_mixer._native import CheckpointError

_SHOWN = 5


class Mismatch(NamedTuple):
    """A tensor that was found and cannot be used."""

    name: str
    """Our name of the weight."""
    file_name: str
    """The file's name of it."""
    expected: str
    """What is needed."""
    found: str
    """What the file has."""

    def __str__(self) -> str:
        return f"{self.name} (expected {self.expected}, '{self.file_name}' has {self.found})"


@dataclass(frozen=True, repr=False)
class LoadReport:
    """What a file offers of an encoder's weights.

    Attributes:
        path: The file.
        format: Its format: ``"safetensors"``, ``"tensor_bundle"``, ``"h5"``, ...
        scheme: How it names weights: ``"keras"``, ``"tf_checkpoint"``, ``"flax"``, ``"huggingface"``, ...
        prefix: Where in the file the encoder is.
        loaded: The file's name of each weight that fits, by our name.
        missing: Weights that the file does not have.
        unexpected: Tensors below `prefix` that are no weight of the encoder. Heads and optimiser state elsewhere in the
            file are not counted.
        shape: Weights of another shape.
        dtype: Weights that are not floating-point numbers.
    """

    path: str
    format: str
    scheme: str
    prefix: str
    loaded: Mapping[str, str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    shape: Sequence[Mismatch]
    dtype: Sequence[Mismatch]

    @property
    def complete(self) -> bool:
        """Whether file and encoder have exactly the same weights."""
        return not (self.missing or self.unexpected or self.shape or self.dtype)

    def summary(self) -> str:
        """What does not fit, in one line; at most five names of each kind."""
        kinds: dict[str, Sequence[object]] = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.shape,
            "of another type": self.dtype,
        }
        parts = []
        for kind, names in kinds.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            if names:
                parts.append(f"{kind}: {', '.join(map(str, names[:_SHOWN]))}{more}")
        return "; ".join(parts)

    def __repr__(self) -> str:
        counts = f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        return f"<LoadReport of {self.path!r}: {counts}>"

    def __str__(self) -> str:
        where = f" below '{self.prefix}'" if self.prefix else ""
        head = f"{self.path} ({self.format}, names: {self.scheme}){where}: {len(self.loaded)} weights fit"
        return head if self.complete else f"{head}; {self.summary()}"

    def require_some(self) -> None:
        """Raise if no weight fits.

        Raises:
            CheckpointError: Names what does not fit.
        """
        if not self.loaded:
            raise CheckpointError(f"{self.path}: none of the encoder's weights is in the file; {self.summary()}")

    def require_complete(self) -> None:
        """Raise unless `complete`.

        Raises:
            CheckpointError: Names what does not fit.
        """
        if not self.complete:
            raise CheckpointError(f"{self.path}: the weights do not fit this encoder; {self.summary()}")
