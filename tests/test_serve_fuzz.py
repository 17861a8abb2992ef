"""Whatever is sent to the server, it answers with JSON, never with a failure of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")
pytest.importorskip("starlette")
from sparse_mixer.serve import Settings, create_app
from text_models import small_model

httpx = pytest.importorskip("httpx")

PATHS = ["/embed", "/v1/embeddings", "/similarity", "/tokenize"]
FIELDS = ["inputs", "input", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions", "model"]
FIELDS += ["encoding_format", "user", "source_sentence", "sentences", "parameters", "add_special_tokens", "other"]
# Half of a pair of surrogates among them, which JSON can say.
TEXT = st.text("ab .\u00e9\u4e16\x00", max_size=20) | st.just("\ud800") | st.sampled_from(["float", "base64", "Right"])
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)
BODY = st.dictionaries(st.sampled_from(FIELDS), VALUE | st.lists(TEXT, min_size=1, max_size=4), max_size=4)


class Client:
    """The application without a socket."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._app = create_app(small_model(folder, prompts={"query": "a "}), Settings(payload_limit=10_000))
        self._life = self._app.router.lifespan_context(self._app)
        self._runner.run(self._life.__aenter__())
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://x")

    def post(self, path: str, content: bytes) -> Any:
        headers = {"content-type": "application/json"}
        return self._runner.run(self._client.post(path, content=content, headers=headers))

    def end(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.run(self._life.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(tmp_path_factory.mktemp("model"))
    yield client
    client.end()


@given(st.sampled_from(PATHS), BODY | VALUE)
@settings(max_examples=400)
def test_any_json(client: Client, path: str, body: Any) -> None:
    response = client.post(path, json.dumps(body).encode())
    assert response.status_code in (200, 400, 413, 422), response.text
    assert response.status_code == 200 or "error" in response.json()


@given(st.sampled_from(PATHS), st.binary(max_size=100))
def test_any_bytes(client: Client, path: str, body: bytes) -> None:
    assert client.post(path, body).status_code in (400, 422)


def test_some_get_through(client: Client) -> None:
    """The fuzzing is of a server that works."""
    assert client.post("/embed", b'{"inputs": ["a", "b"]}').status_code == 200
