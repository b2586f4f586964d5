"""How servers are reached: channels, TLS, and what goes with every call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

Token = str | Callable[[], str]

_OPTIONS = [
    # A response holds a picture's latents; its size is the server's business.
    ("grpc.max_receive_message_length", -1),
    # gRPC would wait up to two minutes before it looks again for a server that is starting.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A machine that is gone says nothing, and a pass may take minutes. The server asks as often.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Older versions of gRPC stop asking after two times in which nothing else was sent.
    ("grpc.max_pings_without_data", 0),
]


@dataclass(frozen=True)
class Tls:
    """Under TLS. PEM, as bytes.

    ca: the authorities that are believed; None: those that this machine does.
    certificate, private_key: the client's own, where the server asks for one.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)


def connect(library: Any, address: str, tls: Tls | bool) -> Any:
    """A channel of `library`, which is grpc or grpc.aio."""
    if not tls:
        return library.insecure_channel(address, options=_OPTIONS)
    chosen = tls if isinstance(tls, Tls) else Tls()
    credentials = grpc.ssl_channel_credentials(chosen.ca, chosen.private_key, chosen.certificate)
    return library.secure_channel(address, credentials, options=_OPTIONS)


def metadata(token: Token) -> list[tuple[str, str]]:
    """The token, asked for anew where it is a function, and the W3C trace context of OpenTelemetry's current span.

    Errors: ValueError where the token is none.
    """
    headers: dict[str, str] = {}
    if "opentelemetry" in sys.modules:  # Who has a span has imported it.
        from opentelemetry import propagate

        propagate.inject(headers)
    text = token() if callable(token) else token
    if text:
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError("token: expected printable ASCII without spaces")
        headers["authorization"] = f"Bearer {text}"
    return list(headers.items())
