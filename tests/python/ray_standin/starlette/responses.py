"""Of Starlette's module of this name what Ray Serve is given back."""

from __future__ import annotations

from typing import NamedTuple


class Response(NamedTuple):
    content: bytes
    media_type: str
