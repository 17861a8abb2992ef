"""Numbers for Prometheus, with the names of text-embeddings-inference."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Sequence

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

_HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "te_request_duration": ("Seconds that a request took", _SECONDS),
    "te_request_tokenization_duration": ("Seconds until a request's texts were tokens", _SECONDS),
    "te_request_queue_duration": ("Seconds that a request waited for the encoder", _SECONDS),
    "te_request_inference_duration": ("Seconds that the encoder worked on a request", _SECONDS),
    "te_request_input_length": ("Tokens of a text", _COUNTS),
    "te_batch_next_size": ("Texts of a batch", _COUNTS),
    "te_batch_next_tokens": ("Positions of a batch", _COUNTS),
}
_COUNTERS = {
    "te_request_count": "Requests",
    "te_request_success": "Requests with a result",
    "te_request_failure": "Requests without one, by kind of error",
    "te_embed_count": "Texts to be encoded",
    "te_embed_success": "Texts encoded",
}
_GAUGES = {"te_queue_size": "Texts that wait", "te_requests_in_flight": "Requests in work or waiting"}


class Metrics:
    """Counters, gauges and histograms; may be told things by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, str], float] = {(name, ""): 0 for name in _COUNTERS}
        self._gauges: dict[str, float] = dict.fromkeys(_GAUGES, 0)
        self._buckets = {name: [0] * (len(limits) + 1) for name, (_, limits) in _HISTOGRAMS.items()}
        self._sums = dict.fromkeys(_HISTOGRAMS, 0.0)

    def count(self, name: str, more: float = 1, label: str = "") -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[name, label] = self._counters.get((name, label), 0) + more

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges[name] = value

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        with self._lock:
            self._buckets[name][bisect.bisect_left(_HISTOGRAMS[name][1], value)] += 1
            self._sums[name] += value

    def text(self) -> str:
        """All of them in Prometheus's form."""
        with self._lock:
            return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        for name, about in _COUNTERS.items():
            yield from (f"# HELP {name} {about}", f"# TYPE {name} counter")
            for (counter, label), value in sorted(self._counters.items()):
                if counter == name and (label or name != "te_request_failure"):
                    yield f'{name}{{err="{label}"}} {value:g}' if label else f"{name} {value:g}"
        for name, about in _GAUGES.items():
            yield from (f"# HELP {name} {about}", f"# TYPE {name} gauge", f"{name} {self._gauges[name]:g}")
        for name, (about, limits) in _HISTOGRAMS.items():
            yield from (f"# HELP {name} {about}", f"# TYPE {name} histogram")
            total = 0
            for limit, number in zip([*limits, "+Inf"], self._buckets[name], strict=True):
                total += number
                yield f'{name}_bucket{{le="{limit}"}} {total}'
            yield from (f"{name}_sum {self._sums[name]:.9g}", f"{name}_count {total}")
