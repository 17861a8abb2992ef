"""``sparse-mixer serve``: vectors over HTTP."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sparse_mixer.serve.settings import Settings

_KEY = "SPARSE_MIXER_API_KEY"
_SERVE = f"""\
Answer requests for vectors over HTTP, with the addresses and fields of Hugging Face's text-embeddings-inference
(/embed, /similarity, /tokenize, /health, /metrics) and of OpenAI (/v1/embeddings). Needs the extra "serve".

  sparse-mixer serve all-MiniLM-L6-v2/ --port 8080
  curl 127.0.0.1:8080/embed -H 'Content-Type: application/json' -d '{{"inputs": "a red apple"}}'

Only this machine is served unless --host says otherwise. A key, if requests must show one, is taken from the
environment variable {_KEY}. Ctrl-C or SIGTERM: requests in work are finished.
"""

_HELP = {
    "max_concurrent_requests": "requests in work or waiting; more get status 429",
    "max_batch_tokens": "tokens of the texts that are encoded together",
    "max_client_batch_size": "texts per request",
    "payload_limit": "bytes per request",
    "timeout": "seconds per request",
}


def add_command(command: Callable[[str, Any, str, str], argparse.ArgumentParser]) -> None:
    """Add it to the parser; `command` makes one of a name, a function, a summary and a description."""
    serve = command("serve", _serve, "answer requests for vectors over HTTP", _SERVE)
    serve.add_argument("model", help="folder of a model, with its tokenizer")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8080, help="port to listen on; 0 for any (default 8080)")
    serve.add_argument("--dtype", help="storage type of the weights: float32, bfloat16, float16, int8")
    serve.add_argument("--num-threads", type=int, help="most threads (default: automatic)")
    serve.add_argument("--pooling", action="append", help="mode of pooling; may be repeated (default: the folder's)")
    serve.add_argument("--max-seq-length", type=int, help="tokens per text (default: the folder's)")
    serve.add_argument("--auto-truncate", action="store_true", help="cut texts that are too long, unless told not to")
    serve.add_argument("--served-model-name", help="what answers call the model (default: the folder's name)")
    for field in fields(Settings):
        if field.name in _HELP:
            serve.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
                help=f"{_HELP[field.name]} (default {field.default})",
            )


def _serve(options: argparse.Namespace) -> int:
    from sparse_mixer import serve
    from sparse_mixer.text.encoder import TextEncoder

    run = serve.serve
    name = options.served_model_name or os.path.basename(os.path.abspath(options.model))
    settings = Settings(
        **{name: getattr(options, name) for name in _HELP},
        auto_truncate=options.auto_truncate,
        api_key=os.environ.get(_KEY) or None,
        served_model_name=name,
    )
    if not 0 <= options.port < 1 << 16:
        raise ValueError(f"--port: got {options.port}, expected 0 to 65535")
    model = TextEncoder(
        options.model,
        pooling=options.pooling,
        dtype=options.dtype,
        num_threads=options.num_threads,
        max_seq_length=options.max_seq_length,
    )
    run(model, options.host, options.port, settings, lambda address: print(f"{name} at {address}", flush=True))
    return 0
