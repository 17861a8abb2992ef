"""A server of vectors over HTTP, with the addresses of text-embeddings-inference and OpenAI (extra ``serve``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparse_mixer._core.extras import require
from sparse_mixer.serve.settings import Settings

if TYPE_CHECKING:
    from sparse_mixer.serve.app import create_app as create_app
    from sparse_mixer.serve.running import serve as serve

__all__ = ["Settings"]


def __getattr__(name: str) -> Any:
    # These need the extra.
    if name == "create_app":
        require("starlette", "serve")
        from sparse_mixer.serve.app import create_app

        return create_app
    if name == "serve":
        require("starlette", "serve")
        require("uvicorn", "serve")
        from sparse_mixer.serve.running import serve

        return serve
    raise AttributeError(f"module 'sparse_mixer.serve' has no attribute {name!r}")
