"""A server as a process: sockets, signals, a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from sparse_mixer.serve.app import create_app
from sparse_mixer.serve.settings import Settings
from sparse_mixer.text.encoder import TextEncoder

# Seconds that requests in work get when the server ends.
_GRACE = 10


def serve(
    model: TextEncoder,
    host: str = "127.0.0.1",
    port: int = 8080,
    settings: Settings | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Answer requests until the process gets SIGINT or SIGTERM; those in work are finished first.

    Args:
        model: What encodes.
        host: Address to listen on; others than this machine reach the server only if it is another one.
        port: Port to listen on; 0 for any that is free.
        settings: Limits.
        ready: Called with the address once requests are answered.

    Raises:
        OSError: The address cannot be had.
    """
    asyncio.run(_serve(model, host, port, settings or Settings(), ready))


async def _serve(model: TextEncoder, host: str, port: int, settings: Settings, ready: Callable[[str], None]) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=1024, reuse_port=False)
    config = uvicorn.Config(
        create_app(model, settings),
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    shown = f"[{host}]" if ":" in host else host
    server.on_start = lambda: ready(f"http://{shown}:{listening.getsockname()[1]}")
    await server.serve(sockets=[listening])


class _Server(uvicorn.Server):
    """Leaves signals to the loop; a second one ends the wait for requests in work."""

    on_start: Callable[[], None]

    def stop(self) -> None:
        """End."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_start()
