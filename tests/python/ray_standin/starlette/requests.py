"""Of Starlette's module of this name what Ray Serve hands on."""

from __future__ import annotations

from typing import NamedTuple


class Request(NamedTuple):
    query_params: dict[str, str]
