"""Bodies of requests: fields and their types, with the names of text-embeddings-inference and OpenAI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sparse_mixer._core.checks import short
from sparse_mixer.serve.errors import RequestError


class Fields:
    """The fields of a request; those with another name are refused, as those of another type."""

    def __init__(self, body: bytes | Mapping[str, Any], *known: str) -> None:
        """Read a body.

        Raises:
            RequestError: No JSON object, or a field that is not among `known`.
        """
        if isinstance(body, bytes):
            try:
                body = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise RequestError(400, "Validation", f"not JSON: {error}") from None
        if not isinstance(body, Mapping):
            raise RequestError(422, "Validation", f"expected a JSON object, got {short(body)}")
        self._values = body
        unknown = sorted(set(body) - set(known))
        if unknown:
            expected = ", ".join(known)
            raise RequestError(422, "Validation", f"{unknown[0]}: no such field; known are {expected}")

    def texts(self, name: str, most: int) -> list[str]:
        """A text or a list of texts."""
        value = self._values.get(name)
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list):
            raise RequestError(422, "Validation", f"{name}: expected a text or a list of texts, got {short(value)}")
        if not texts:
            raise RequestError(400, "Empty", f"{name}: cannot be empty")
        if len(texts) > most:
            raise RequestError(
                413, "Validation", f"{name}: batch size {len(texts)} > maximum allowed batch size {most}"
            )
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                hint = "; token ids are not taken, send texts" if isinstance(text, int | list) else ""
                message = f"{name}[{place}]: expected a text, got {short(text)}{hint}"
                raise RequestError(422, "Validation", message)
            check_text(f"{name}[{place}]", text)
        return texts

    def text(self, name: str) -> str | None:
        """A text; None if there is none."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise RequestError(422, "Validation", f"{name}: expected a text, got {short(value)}")
        if value is not None:
            check_text(name, value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise RequestError(422, "Validation", f"{name}: expected true or false, got {short(value)}")
        return value

    def number(self, name: str, most: int) -> int | None:
        """A number from 1 to `most`; None if there is none."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise RequestError(422, "Validation", f"{name}: got {short(value)}, expected 1 to {most}")
        return value

    def choice(self, name: str, *choices: str) -> str:
        """One of some words, whose first is meant where none is given."""
        value = self._values.get(name)
        if value is None:
            return choices[0]
        if value not in choices:
            expected = " or ".join(map(repr, choices))
            raise RequestError(422, "Validation", f"{name}: got {short(value)}, expected {expected}")
        return str(value)

    def inner(self, name: str, *known: str) -> Fields:
        """An object with fields of its own."""
        return Fields(self._values.get(name) or {}, *known)


def check_text(name: str, text: str) -> None:
    """Refuse what JSON can say but is no text.

    Raises:
        RequestError: Half of a pair of surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(422, "Tokenizer", f"{name}: not text: {error.reason}") from None
