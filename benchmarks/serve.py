"""Load on `sparse-mixer serve` over loopback: requests per second, and how long requests take at 70 % of that.

The server is a process of its own, the client another one on the same machine: it sends ready-made bytes over
connections that stay open, so that it needs little of the processor. A request's time runs from when it was due, not
from when a connection was free. Requests come at even distances, or at random ones (Poisson), where waiting in a queue
is part of the game.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sparse_mixer

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "nrst"]


def make_model(folder: pathlib.Path) -> pathlib.Path:
    """A BERT of all-MiniLM-L6-v2's size with random weights, and a vocabulary."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    sizes: dict[str, Any] = {"hidden_size": 384, "num_layers": 6, "inner_dim": 1536, "num_attention_heads": 12}
    layers: dict[str, Any] = {"attention_layers": range(6), "moe_layers": (), "shorter_sequences": True}
    encoder = sparse_mixer.SparseMixer(len(vocabulary), **sizes, **layers, max_sequence_length=256, seed=0)
    encoder.save(folder / "model.safetensors")
    return folder / "model.safetensors"


class _Client:
    """Requests over as many connections as are needed at once."""

    def __init__(self, host: str, port: int, bodies: Sequence[bytes]) -> None:
        head = f"POST /embed HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
        self._requests = [head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body for body in bodies]
        self._host, self._port = host, port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.failures = 0

    async def ask(self, number: int) -> None:
        """Send a request and read its answer."""
        if self._free:
            reader, writer = self._free.pop()
        else:
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 22)
        writer.write(self._requests[number % len(self._requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length is not None
        await reader.readexactly(int(length[1]))
        self.failures += b" 200 " not in head.partition(b"\r\n")[0]
        self._free.append((reader, writer))

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._free:
            writer.close()
            await writer.wait_closed()


async def _most(client: _Client, clients: int, seconds: float) -> float:
    """Requests per second of so many clients that ask again as soon as they have an answer."""
    done, end = 0, time.perf_counter() + seconds

    async def loop(first: int) -> None:
        nonlocal done
        number = first
        while time.perf_counter() < end:
            await client.ask(number)
            number += clients
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*(loop(first) for first in range(clients)))
    return done / (time.perf_counter() - begin)


async def _times(client: _Client, due: Sequence[float]) -> list[float]:
    """Seconds that each request takes, sent at these seconds from now."""
    times: list[float] = []
    begin = time.perf_counter()

    async def one(number: int, at: float) -> None:
        await client.ask(number)
        times.append(time.perf_counter() - begin - at)

    tasks = []
    for number, at in enumerate(due):
        await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number, at)))
    await asyncio.gather(*tasks)
    return times


async def _measure(client: _Client, clients: int, seconds: float, load: float, say: Callable[[str], None]) -> None:
    await _most(client, clients, min(2.0, seconds))
    most = await _most(client, clients, seconds)
    say(f"{clients} clients at once: {most:.1f} requests/s")
    say("")
    say(f"| arrivals at {load:.0%} of that | requests | p50 ms | p90 ms | p99 ms | p99 / p50 | not answered |")
    say("|---|---:|---:|---:|---:|---:|---:|")
    count = max(1, int(most * load * seconds))
    gaps = {
        "even": np.full(count, 1 / (most * load)),
        "Poisson": np.random.default_rng(0).exponential(1 / (most * load), count),
    }
    for name, gap in gaps.items():
        client.failures = 0
        times = await _times(client, np.cumsum(gap).tolist())
        p50, p90, p99 = np.quantile(times, [0.5, 0.9, 0.99]) * 1000
        cells = [f"{p50:.1f}", f"{p90:.1f}", f"{p99:.1f}", f"{p99 / p50:.2f}", str(client.failures)]
        say(f"| {name} | {count} | {' | '.join(cells)} |")
    await client.close()


def run(
    model: pathlib.Path | None,
    threads: int,
    *,
    dtype: str,
    words: Sequence[int],
    clients: int,
    seconds: float,
    load: float,
    options: Sequence[str],
) -> str:
    """Start a server, put load on it, and return the table.

    Args:
        model: Folder of a model; None for one of all-MiniLM-L6-v2's size with random weights.
        threads: Threads of the encoder.
        dtype: Storage type of its weights.
        words: Least and largest number of words of a text.
        clients: How many ask at once to find the most requests per second.
        seconds: Length of each phase.
        load: Share of the most at which times are taken.
        options: Further options of ``sparse-mixer serve``.
    """
    lines: list[str] = []
    random = np.random.default_rng(0)
    lengths = random.integers(words[0], words[1] + 1, 500)
    bodies = [json.dumps({"inputs": " ".join(random.choice(WORDS, length))}).encode() for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        model = model or make_model(pathlib.Path(folder))
        command = [sys.executable, "-m", "sparse_mixer.cli", "serve", str(model), "--port=0", f"--dtype={dtype}"]
        command += [f"--num-threads={threads}", *options]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = re.search(r"http://(\S+):(\d+)", server.stdout.readline())
            if address is None:
                raise RuntimeError("the server does not start")
            lines.append(f"{dtype}, {threads} threads, a text of {words[0]} to {words[1]} words per request")
            client = _Client(address[1], int(address[2]), bodies)
            asyncio.run(_measure(client, clients, seconds, load, lines.append))
        finally:
            server.terminate()
            server.wait(timeout=30)
    return "\n".join(lines)
