"""What both clients are made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ._connection import Tls, Token
from ._servers import Balance, Servers

SessionT = TypeVar("SessionT")


class Configured(Generic[SessionT]):
    """Holds the channels, and the time that a call has which names none. The arguments: see Client."""

    _make_session: Callable[[Servers, Tls | bool, Token, int], SessionT]

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:50051",
        *,
        token: Token = "",
        tls: Tls | bool = False,
        retries: int = 5,
        timeout: float | None = None,
        balance: Balance = "least_waiting",
    ) -> None:
        servers = Servers([address] if isinstance(address, str) else address, balance)
        self._session = self._make_session(servers, tls, token, retries)
        self._timeout = timeout
