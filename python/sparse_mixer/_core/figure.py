"""A figure of matplotlib that notebooks show as the last line of a cell, without pyplot or a backend of theirs."""

from __future__ import annotations

import base64
import io
from typing import Any

from matplotlib.figure import Figure as PlainFigure


class Figure(PlainFigure):
    """A `matplotlib.figure.Figure` that shows itself."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """The picture for notebooks: a PNG in base64, and the text for consoles."""
        return {"image/png": base64.b64encode(self._png()).decode(), "text/plain": repr(self)}

    def _repr_html_(self) -> str:
        """The picture for whatever shows HTML alone."""
        return f'<img src="data:image/png;base64,{base64.b64encode(self._png()).decode()}">'

    def _png(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png")
        return stream.getvalue()
