"""What a server permits, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sparse_mixer._core.checks import as_bool, as_float, as_positive


@dataclass(frozen=True)
class Settings:
    """Limits of a server, with the names of text-embeddings-inference.

    Attributes:
        max_concurrent_requests: Requests that are in work or wait; more get status 429.
        max_batch_tokens: Tokens of the texts that are encoded together. Small batches keep waiting times alike.
        max_client_batch_size: Texts per request; more get status 413.
        payload_limit: Bytes of a request; more get status 413.
        timeout: Seconds that a request may take; longer ones get status 504, or 408 if it has not arrived by then.
        auto_truncate: Whether texts that are too long are cut where a request does not say.
        api_key: What requests must show as ``Authorization: Bearer ...``; None for nothing.
        served_model_name: What answers call the model.
    """

    max_concurrent_requests: int = 512
    max_batch_tokens: int = 2048
    max_client_batch_size: int = 32
    payload_limit: int = 2_000_000
    timeout: float = 60.0
    auto_truncate: bool = False
    api_key: str | None = None
    served_model_name: str = "sparse_mixer"

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            ValueError, TypeError: One that cannot be; the message names it.
        """
        for name in ("max_concurrent_requests", "max_batch_tokens", "max_client_batch_size", "payload_limit"):
            as_positive(name, getattr(self, name))
        if as_float("timeout", self.timeout) <= 0:
            raise ValueError(f"timeout: got {self.timeout}, expected more than 0")
        as_bool("auto_truncate", self.auto_truncate)
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii()):
            raise ValueError("api_key: expected ASCII characters, at least one")

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "api_key"}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
