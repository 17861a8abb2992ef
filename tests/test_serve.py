"""``sparse-mixer serve``: a real process, asked over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from sparse_mixer import SparseMixer, TextEncoder, cli, embeddings
from sparse_mixer.serve import Settings
from text_models import LETTERS, VOCABULARY, folder_of

httpx = pytest.importorskip("httpx")

TEXTS = [" ".join(LETTERS[(i * k) % 11] for k in range(1, 2 + i % 5)) for i in range(40)]


class Server:
    """A server process, and a client that knows its address."""

    def __init__(self, model: Path, *options: str, **variables: str) -> None:
        command = [sys.executable, "-m", "sparse_mixer.cli", "serve", str(model), "--port=0", *options]
        environment = os.environ | variables
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + self.process.communicate()[1]
        self.address = found[0]
        self.client = httpx.Client(base_url=self.address, timeout=60)

    def end(self, number: int = signal.SIGTERM) -> str:
        """Stops it; what it wrote to the error output."""
        self.client.close()
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, errors
        return errors


@contextlib.contextmanager
def serving(model: Path, *options: str, **variables: str) -> Iterator[Server]:
    server = Server(model, *options, **variables)
    try:
        yield server
    finally:
        server.client.close()
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    about = {"prompts": {"query": "a b "}, "similarity_fn_name": "cosine"}
    return folder_of(tmp_path_factory.mktemp("model") / "mini", config_sentence_transformers=about, normalize=False)


@pytest.fixture(scope="module")
def model(folder: Path) -> TextEncoder:
    return TextEncoder(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--max-client-batch-size=40", "--payload-limit=20000") as server:
        yield server
        assert server.end() == ""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes some tenths of a second for `LONG`."""
    folder = tmp_path_factory.mktemp("slow")
    layers: dict[str, Any] = {"attention_layers": range(3), "moe_layers": (), "shorter_sequences": True}
    sizes: dict[str, Any] = {"hidden_size": 256, "num_layers": 3, "inner_dim": 1024, "max_sequence_length": 256}
    SparseMixer(len(VOCABULARY), **sizes, **layers, seed=0).save(folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return folder / "model.safetensors"


LONG = {"inputs": ["a " * 250] * 32}


def numbers(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return np.array(response.json(), np.float32)


def test_embed_has_the_fields_of_text_embeddings_inference(server: Server, model: TextEncoder) -> None:
    def ask(**body: Any) -> Any:
        return numbers(server.client.post("/embed", json=body))

    np.testing.assert_array_equal(ask(inputs="a b"), model.encode(["a b"], normalize_embeddings=True))
    np.testing.assert_array_equal(ask(inputs=TEXTS), model.encode(TEXTS, normalize_embeddings=True))
    np.testing.assert_array_equal(ask(inputs=TEXTS, normalize=False), model.encode(TEXTS))
    shorter = model.encode(TEXTS, normalize_embeddings=True, truncate_dim=5)
    np.testing.assert_array_equal(ask(inputs=TEXTS, dimensions=5), shorter)
    np.testing.assert_array_equal(
        ask(inputs="c", prompt_name="query"), model.encode(["a b c"], normalize_embeddings=True)
    )
    long = "a " * 30
    with pytest.warns(UserWarning, match="more than max_seq_length"):
        cut = model.encode([long], normalize_embeddings=True)
    np.testing.assert_array_equal(ask(inputs=long, truncate=True, truncation_direction="Right"), cut)
    response = server.client.post("/embed", json={"inputs": ["a b", "c"]})
    assert response.headers["x-compute-tokens"] == "7"
    assert response.headers["x-compute-characters"] == "4"
    assert float(response.headers["x-total-time"]) >= float(response.headers["x-inference-time"]) > 0


def test_openai_has_its_fields(server: Server, model: TextEncoder) -> None:
    body = {"input": TEXTS[:3], "model": "any", "encoding_format": "float", "user": "me"}
    answer = server.client.post("/v1/embeddings", json=body).json()
    assert (answer["object"], answer["model"]) == ("list", "any")
    assert [(one["object"], one["index"]) for one in answer["data"]] == [("embedding", i) for i in range(3)]
    expected = model.encode(TEXTS[:3], normalize_embeddings=True)
    np.testing.assert_array_equal(np.array([one["embedding"] for one in answer["data"]], np.float32), expected)
    used = sum(model.token_count(TEXTS[:3]))
    assert answer["usage"] == {"prompt_tokens": used, "total_tokens": used}
    body = {"input": "a b", "encoding_format": "base64", "dimensions": 3}
    answer = server.client.post("/v1/embeddings", json=body).json()
    assert answer["model"] == "mini"
    vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(vector, model.encode("a b", normalize_embeddings=True, truncate_dim=3))


def test_similarity(server: Server, model: TextEncoder) -> None:
    body = {"inputs": {"source_sentence": "a b", "sentences": TEXTS[:4]}, "parameters": {"prompt_name": "query"}}
    queries = model.encode(["a b", *TEXTS[:4]], prompt_name="query")
    expected = embeddings.cos_sim(queries[0], queries[1:])[0]
    np.testing.assert_array_equal(numbers(server.client.post("/similarity", json=body)), expected)


def test_tokenize(server: Server) -> None:
    (tokens, _) = server.client.post("/tokenize", json={"inputs": ["ab c", "c"]}).json()
    assert tokens == [
        {"id": 2, "text": "[CLS]", "special": True, "start": None, "stop": None},
        {"id": 5, "text": "a", "special": False, "start": 0, "stop": 1},
        {"id": 18, "text": "##b", "special": False, "start": 1, "stop": 2},
        {"id": 7, "text": "c", "special": False, "start": 3, "stop": 4},
        {"id": 3, "text": "[SEP]", "special": True, "start": None, "stop": None},
    ]
    body = {"inputs": "c", "add_special_tokens": False, "prompt_name": "query"}
    (tokens,) = server.client.post("/tokenize", json=body).json()
    assert [token["text"] for token in tokens] == ["a", "b", "c"]


def test_health_info_and_metrics(server: Server, model: TextEncoder) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    info = server.client.get("/info").json()
    assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == ("mini", 8, 40)

    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", server.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0

    failed = 'te_request_failure{err="validation"}'
    names = ["te_request_count", "te_request_success", "te_embed_success", "te_request_duration_count", failed]
    names += ['te_request_input_length_bucket{le="4"}']
    before = [value(name) for name in names]
    server.client.post("/embed", json={"inputs": ["a b", "c", "a b c"]})
    server.client.post("/embed", json={"inputs": 3})
    after = [value(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1, 3, 1, 1, 2]
    assert value("te_queue_size") == 0


def test_same_bits_alone_and_among_others(slow: Path) -> None:
    """The server puts texts of 16 clients into common batches; each has the vector that it has alone."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(list(LETTERS), random.integers(1, 60))) for _ in range(120)]
    expected = TextEncoder(slow).encode(texts, batch_size=1, normalize_embeddings=True)
    with serving(slow) as server:

        def ask(place: int) -> Any:
            return numbers(server.client.post("/embed", json={"inputs": texts[place]}))[0]

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(ask, range(len(texts))))
        np.testing.assert_array_equal(np.stack(found), expected)
        metrics = server.client.get("/metrics").text
        batches = float(re.findall(r"te_batch_next_size_count (\S+)", metrics)[0])
        assert batches < 100, "texts of several clients should share batches"
        assert server.end() == ""


WRONG: list[tuple[str, Any, int, str]] = [
    ("/embed", {"inputs": []}, 400, "inputs: cannot be empty"),
    ("/embed", {}, 422, "inputs: expected a text or a list of texts, got None"),
    ("/embed", {"inputs": ["a", 3]}, 422, "inputs[1]: expected a text, got 3; token ids are not taken"),
    ("/embed", {"inputs": "a", "prompt": "b"}, 422, "prompt: no such field; known are inputs"),
    ("/embed", {"inputs": "a", "normalize": "yes"}, 422, "normalize: expected true or false"),
    ("/embed", {"inputs": "a", "dimensions": 17}, 422, "dimensions: got 17, expected 1 to 16"),
    ("/embed", {"inputs": "a", "prompt_name": "x"}, 422, "prompt_name: got 'x', expected one of ['query']"),
    ("/embed", {"inputs": "a", "truncation_direction": "Left"}, 422, "truncation_direction: got 'Left'"),
    ("/embed", {"inputs": ["b", "a " * 30]}, 413, "inputs[1]: more than max_seq_length=8 tokens"),
    ("/embed", {"inputs": ["a"] * 41}, 413, "batch size 41 > maximum allowed batch size 40"),
    ("/embed", [1], 422, "expected a JSON object"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, 422, "encoding_format: got 'int8'"),
    ("/v1/embeddings", {"input": [1, 2]}, 422, "token ids are not taken"),
    ("/similarity", {"inputs": {"sentences": ["a"]}}, 422, "inputs.source_sentence: missing"),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "sentences: cannot be empty"),
    ("/tokenize", {"inputs": None}, 422, "inputs: expected a text"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), WRONG)
def test_wrong_requests(path: str, body: Any, status: int, message: str, server: Server) -> None:
    response = server.client.post(path, json=body)
    assert response.status_code == status
    answer = response.json()
    assert message in (answer["error"]["message"] if path.startswith("/v1") else answer["error"])
    assert server.client.get("/health").status_code == 200


def test_what_is_no_request(server: Server) -> None:
    def status(content: bytes, kind: str = "application/json", path: str = "/embed") -> int:
        return server.client.post(path, content=content, headers={"content-type": kind}).status_code

    assert status(b"{") == 400
    assert status(b"[" * 10_000) == 400
    assert status(b"\xff\xfe") == 400
    assert status(b'{"inputs": "\\ud800"}') == 422
    assert status(b'{"inputs": "a"}', "text/plain") == 415
    assert status(b'{"inputs": "a"}', path="/no") == 404
    assert server.client.get("/embed").status_code == 405
    assert status(json.dumps({"inputs": "a" * 30_000}).encode()) == 413

    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    # Without Content-Length.
    response = server.client.post("/embed", content=parts(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert status(b'{"inputs": "a"}') == 200


def test_overload_is_refused(slow: Path, folder: Path) -> None:
    with serving(slow, "--max-concurrent-requests=2") as server, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(server.client.post, "/embed", json=LONG) for _ in range(2)]
        deadline = time.monotonic() + 20
        while "te_requests_in_flight 2" not in server.client.get("/metrics").text:
            assert time.monotonic() < deadline
        refused = server.client.post("/v1/embeddings", json={"input": "a"})
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "1"
        assert [one.result().status_code for one in waiting] == [200, 200]
        assert server.client.post("/embed", json={"inputs": "a"}).status_code == 200
        assert 'te_request_failure{err="overloaded"} 1' in server.client.get("/metrics").text


def test_requests_that_take_too_long(slow: Path) -> None:
    with serving(slow, "--timeout=0.1", "--max-batch-tokens=512") as server:
        response = server.client.post("/embed", json=LONG)
        assert response.status_code == 504
        assert response.json() == {"error": "no result within 0.1 s", "error_type": "Overloaded"}
        # Its texts left the queue: what comes next does not wait for all of them.
        deadline = time.monotonic() + 5
        while server.client.post("/embed", json={"inputs": "a"}).status_code != 200:
            assert time.monotonic() < deadline
        found = re.search(r"te_batch_next_size_sum (\S+)", server.client.get("/metrics").text)
        assert found
        assert float(found[1]) < 32
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(
                b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
            assert b" 408 " in raw.recv(1000)


def test_api_key(folder: Path) -> None:
    with serving(folder, SPARSE_MIXER_API_KEY="secret") as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            refused = server.client.post("/embed", json={"inputs": "a"}, headers=headers)
            assert refused.status_code == 401
            assert server.client.get("/metrics", headers=headers).status_code == 401
        assert server.client.get("/health").status_code == 200
        headers = {"authorization": "Bearer secret"}
        assert server.client.post("/embed", json={"inputs": "a"}, headers=headers).status_code == 200
        assert server.client.get("/info", headers=headers).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_requests_in_work_are_finished(number: int, slow: Path) -> None:
    with serving(slow, "--served-model-name=mine") as server:
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(server.client.post("/embed", json=LONG)))
        asking.start()
        deadline = time.monotonic() + 20
        while "te_requests_in_flight 1" not in httpx.get(f"{server.address}/metrics").text:
            assert time.monotonic() < deadline
        server.process.send_signal(number)
        asking.join()
        assert np.array(answers[0].json()).shape == (32, 256)
        _, errors = server.process.communicate(timeout=30)
        assert (server.process.returncode, errors) == (0, "")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.address}/health")


def test_only_this_machine_is_served(server: Server) -> None:
    assert server.address.startswith("http://127.0.0.1:")


def test_wrong_commands(folder: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in [
        (["--port=70000"], "--port: got 70000"),
        (["--timeout=0"], "timeout: got 0.0, expected more than 0"),
        (["--max-batch-tokens=0"], "max_batch_tokens: expected at least 1, got 0"),
        ([f"--port={server.address.rpartition(':')[2]}"], "in use"),
    ]:
        assert cli.main(["serve", str(folder), *options]) == cli.EXIT_USAGE
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="api_key: expected ASCII"):
        Settings(api_key="")
    assert "secret" not in repr(Settings(api_key="secret"))


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("starlette", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["serve", str(folder)]) == cli.EXIT_USAGE
    assert 'pip install "sparse_mixer[serve]"' in capsys.readouterr().err
