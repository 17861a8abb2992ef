"""The server as an ASGI application: addresses, limits, answers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import sparse_mixer
from sparse_mixer.embeddings.similarity import SIMILARITIES
from sparse_mixer.serve.batching import Batcher
from sparse_mixer.serve.errors import RequestError
from sparse_mixer.serve.metrics import Metrics
from sparse_mixer.serve.schemas import Fields
from sparse_mixer.serve.settings import Settings
from sparse_mixer.text.encoder import TextEncoder
from sparse_mixer.text.tokens import Tokens

Floats = npt.NDArray[np.float32]
Handler = Callable[[Request, bytes, "dict[str, str]"], Awaitable[Any]]

_log = logging.getLogger("sparse_mixer.serve")

# Characters that are tokenised where they are; more go to another thread, so that others are answered meanwhile.
_FEW = 4096
# Bytes of an unwanted body that are read, so that the client sees the answer before the connection ends.
_REST = 1 << 22


def create_app(model: TextEncoder, settings: Settings | None = None) -> Starlette:
    """The application that answers for a model.

    Args:
        model: What encodes.
        settings: Its limits; None for the defaults.
    """
    return _Server(model, settings or Settings()).app


class _Server:
    def __init__(self, model: TextEncoder, settings: Settings) -> None:
        self._model, self._settings = model, settings
        self._metrics = Metrics()
        self._batcher: Batcher | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._in_flight = 0
        posts: dict[str, Handler] = {
            "/embed": self._embed,
            "/v1/embeddings": self._openai,
            "/similarity": self._similarity,
            "/tokenize": self._tokenize,
        }
        routes = [Route(path, self._limited(handler), methods=["POST"]) for path, handler in posts.items()]
        routes += [
            Route("/health", self._health),
            Route("/info", self._protected(self._info)),
            Route("/metrics", self._protected(self._show_metrics)),
        ]
        self.app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={RequestError: _answer_error, HTTPException: _answer_http_error},
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        # The first pass takes longer than others.
        self._model.encode_tokens(self._model.to_tokens(["warm"], on_truncation="ignore"))
        self._batcher = Batcher(self._model, self._settings.max_batch_tokens, self._metrics)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="sparse_mixer tokens")
        try:
            yield
        finally:
            self._batcher.close()
            self._threads.shutdown(cancel_futures=True)

    # Around every request -----------------------------------------------------------------------------------------

    def _check_key(self, request: Request) -> None:
        key = self._settings.api_key
        shown = request.headers.get("authorization", "")
        if key is not None and not hmac.compare_digest(shown.encode(), f"Bearer {key}".encode()):
            raise RequestError(401, "Unauthorized", "expected Authorization: Bearer and the key of this server")

    def _protected(self, handler: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            self._check_key(request)
            return handler()

        return endpoint

    def _limited(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """A request with all limits: key, number at once, size, time."""

        async def endpoint(request: Request) -> Response:
            begin = time.perf_counter()
            self._metrics.count("te_request_count")
            try:
                self._check_key(request)
                if self._in_flight >= self._settings.max_concurrent_requests:
                    raise RequestError(429, "Overloaded", "too many requests are waiting; try again later")
                self._in_flight += 1
                self._metrics.gauge("te_requests_in_flight", self._in_flight)
                try:
                    content, headers = await self._in_time(handler, request)
                finally:
                    self._in_flight -= 1
                    self._metrics.gauge("te_requests_in_flight", self._in_flight)
            except RequestError as error:
                self._metrics.count("te_request_failure", label=error.kind.lower())
                raise
            except ClientDisconnect:
                self._metrics.count("te_request_failure", label="disconnected")
                return Response(status_code=499)
            except Exception:
                self._metrics.count("te_request_failure", label="backend")
                _log.exception("%s failed", request.url.path)
                raise RequestError(500, "Backend", "the server failed; its log says why") from None
            seconds = time.perf_counter() - begin
            self._metrics.count("te_request_success")
            self._metrics.observe("te_request_duration", seconds)
            return JSONResponse(content, headers={**headers, "x-total-time": _milliseconds(seconds)})

        return endpoint

    async def _in_time(self, handler: Handler, request: Request) -> tuple[Any, dict[str, str]]:
        headers: dict[str, str] = {"x-compute-type": "cpu"}
        body = None
        try:
            async with asyncio.timeout(self._settings.timeout):
                body = await self._body(request)
                return await handler(request, body, headers), headers
        except TimeoutError:
            if body is None:
                raise RequestError(408, "Validation", "the request did not arrive in time") from None
            raise RequestError(504, "Overloaded", f"no result within {self._settings.timeout:g} s") from None

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(415, "Validation", f"Content-Type: got {kind!r}, expected application/json")
        most = self._settings.payload_limit
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size <= most:
                parts.append(part)
            elif size > most + _REST:
                break
        if size > most:
            raise RequestError(413, "Validation", f"the request has more than {most} bytes")
        return b"".join(parts)

    # What is asked ------------------------------------------------------------------------------------------------

    async def _embed(self, request: Request, body: bytes, headers: dict[str, str]) -> Any:
        fields = Fields(body, "inputs", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions")
        texts = fields.texts("inputs", self._settings.max_client_batch_size)
        unit, dim = fields.flag("normalize", True), fields.number("dimensions", self._model.dimension())
        tokens = await self._tokens(texts, fields, headers)
        return (await self._vectors(tokens, unit, dim, headers)).tolist()

    async def _openai(self, request: Request, body: bytes, headers: dict[str, str]) -> Any:
        fields = Fields(body, "input", "model", "encoding_format", "dimensions", "user")
        texts = fields.texts("input", self._settings.max_client_batch_size)
        fields.text("user")
        name = fields.text("model") or self._settings.served_model_name
        form, dim = (
            fields.choice("encoding_format", "float", "base64"),
            fields.number("dimensions", self._model.dimension()),
        )
        tokens = await self._tokens(texts, fields, headers)
        vectors = await self._vectors(tokens, True, dim, headers)
        shown: list[Any] = vectors.tolist()
        if form == "base64":
            shown = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
        used = sum(len(one.ids) for one in tokens)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": one, "index": place} for place, one in enumerate(shown)],
            "model": name,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }

    async def _similarity(self, request: Request, body: bytes, headers: dict[str, str]) -> Any:
        fields = Fields(body, "inputs", "parameters")
        inputs = fields.inner("inputs", "source_sentence", "sentences")
        parameters = fields.inner("parameters", "truncate", "truncation_direction", "prompt_name")
        source = inputs.text("source_sentence")
        if source is None:
            raise RequestError(422, "Validation", "inputs.source_sentence: missing")
        sentences = inputs.texts("sentences", self._settings.max_client_batch_size)
        tokens = await self._tokens([source, *sentences], parameters, headers)
        vectors = await self._vectors(tokens, False, None, headers)
        scores = SIMILARITIES[self._model.similarity_fn_name][0](vectors[:1], vectors[1:])
        return scores[0].tolist()

    async def _tokenize(self, request: Request, body: bytes, headers: dict[str, str]) -> Any:
        fields = Fields(body, "inputs", "add_special_tokens", "prompt_name")
        texts = fields.texts("inputs", self._settings.max_client_batch_size)
        special, front = fields.flag("add_special_tokens", True), self._front(fields)
        encodings = await self._elsewhere(texts, lambda: self._model.tokenizations([front + text for text in texts]))
        return [_tokens_of(text, one, special) for text, one in zip(texts, encodings, strict=True)]

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def _show_metrics(self) -> Response:
        return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4")

    def _info(self) -> Response:
        settings = self._settings
        return JSONResponse(
            {
                "model_id": settings.served_model_name,
                "model_dtype": self._model.encoder.dtype,
                "model_type": {"embedding": {"pooling": "+".join(self._model.pooling)}},
                "max_concurrent_requests": settings.max_concurrent_requests,
                "max_input_length": self._model.max_seq_length,
                "max_batch_tokens": settings.max_batch_tokens,
                "max_client_batch_size": settings.max_client_batch_size,
                "auto_truncate": settings.auto_truncate,
                "version": sparse_mixer.__version__,
            }
        )

    # Steps --------------------------------------------------------------------------------------------------------

    def _front(self, fields: Fields) -> str:
        try:
            return self._model.prompt_text(fields.text("prompt_name"))
        except ValueError as error:
            raise RequestError(422, "Validation", str(error)) from None

    async def _tokens(self, texts: list[str], fields: Fields, headers: dict[str, str]) -> list[Tokens]:
        cuts, front = fields.flag("truncate", self._settings.auto_truncate), self._front(fields)
        fields.choice("truncation_direction", "Right", "right")
        begin = time.perf_counter()
        rule = "ignore" if cuts else "error"
        try:
            tokens: list[Tokens] = await self._elsewhere(
                texts, lambda: self._model.to_tokens(texts, None, front, on_truncation=rule)
            )
        except ValueError as error:
            message = str(error).partition(";")[0]
            raise RequestError(413, "Validation", f"{message}; shorten it, or send truncate: true") from None
        seconds = time.perf_counter() - begin
        self._metrics.observe("te_request_tokenization_duration", seconds)
        headers["x-tokenization-time"] = _milliseconds(seconds)
        headers["x-compute-characters"] = str(sum(map(len, texts)))
        headers["x-compute-tokens"] = str(sum(len(one.ids) for one in tokens))
        return tokens

    async def _elsewhere(self, texts: list[str], work: Callable[[], Any]) -> Any:
        """Do something with texts on another thread, unless they are short."""
        if sum(map(len, texts)) <= _FEW:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _vectors(self, tokens: list[Tokens], unit: bool, dim: int | None, headers: dict[str, str]) -> Floats:
        assert self._batcher is not None, "the application has not been started"
        self._metrics.count("te_embed_count", len(tokens))
        for one in tokens:
            self._metrics.observe("te_request_input_length", len(one.ids))
        result = await self._batcher.encode(tokens, unit, self._model.dimension(dim))
        self._metrics.count("te_embed_success", len(tokens))
        self._metrics.observe("te_request_queue_duration", result.waited)
        self._metrics.observe("te_request_inference_duration", result.worked)
        headers["x-queue-time"] = _milliseconds(result.waited)
        headers["x-inference-time"] = _milliseconds(result.worked)
        return result.vectors


def _tokens_of(text: str, encoding: Any, special: bool) -> list[dict[str, Any]]:
    """What text-embeddings-inference says of tokens; places are in the text with its prompt, in characters."""
    tokens = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [
        {
            "id": number,
            "text": token,
            "special": bool(is_special),
            "start": None if is_special else start,
            "stop": None if is_special else stop,
        }
        for number, token, (start, stop), is_special in tokens
        if special or not is_special
    ]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"retry-after": "1"} if error.status == 429 else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    # What was not read of the request must not be taken for the next one.
    if error.status in (401, 408, 413, 415, 429):
        headers["connection"] = "close"
    return JSONResponse(error.content(request.url.path), error.status, headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = RequestError(error.status_code, "Validation", f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(known.content(request.url.path), error.status_code, error.headers)
