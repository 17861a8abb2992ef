"""Answers that say what is wrong, in the form that the asked interface has."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request that gets no result."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        """With its status of HTTP.

        Args:
            status: The number.
            kind: text-embeddings-inference's word: ``Validation``, ``Tokenizer``, ``Empty``, ``Overloaded``,
                ``Backend``, ``Unauthorized``.
            message: What is wrong.
        """
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message

    def content(self, path: str) -> dict[str, Any]:
        """The body of the answer: OpenAI's form below ``/v1``, else that of text-embeddings-inference."""
        if not path.startswith("/v1/"):
            return {"error": self.message, "error_type": self.kind}
        kinds = {429: "rate_limit_exceeded", 401: "authentication_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": None}}
