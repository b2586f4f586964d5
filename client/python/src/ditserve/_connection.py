"""How servers are reached: channels, TLS, and what goes with every call."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
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
# To connect takes so long at most: a machine that answers nothing is passed over then. (gRPC would give it 20 s.)
_OPTIONS_OF_SEVERAL = [*_OPTIONS, ("grpc.min_reconnect_backoff_ms", 5_000)]


# Where distributions keep the authorities that a machine believes, as gRPC's core knows them.
_AUTHORITIES = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
]


@dataclass(frozen=True)
class Tls:
    """Under TLS. PEM, as bytes.

    ca: the authorities that are believed; None: those that this machine does (or SSL_CERT_FILE, if it is set), and where it
        has no file of them those that gRPC brings along.
    certificate, private_key: the client's own, where the server asks for one.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)


def connect(library: Any, address: str, tls: Tls | bool, is_of_several: bool) -> Any:
    """A channel of `library`, which is grpc or grpc.aio. is_of_several: others could take its calls."""
    options = _OPTIONS_OF_SEVERAL if is_of_several else _OPTIONS
    if not tls:
        return library.insecure_channel(address, options=options)
    chosen = tls if isinstance(tls, Tls) else Tls()
    believed = chosen.ca or _machine_authorities()
    credentials = grpc.ssl_channel_credentials(believed, chosen.private_key, chosen.certificate)
    return library.secure_channel(address, credentials, options=options)


def _machine_authorities() -> bytes | None:
    """None, which is gRPC's choice, where there is no file of them, or gRPC is told one by its own variable."""
    if "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" in os.environ:
        return None
    files = [ssl.get_default_verify_paths().cafile, *_AUTHORITIES]
    return next((Path(file).read_bytes() for file in files if file and Path(file).is_file()), None)


def metadata(token: Token) -> list[tuple[str, str]]:
    """The token, asked for anew where it is a function, and the W3C trace context of OpenTelemetry's current span.

    Errors: ValueError where the token is none.
    """
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:  # Who has a span has imported it.
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Not what the process propagates elsewhere: headers that gRPC does not take, and baggage, which may be private.
        TraceContextTextMapPropagator().inject(headers)
    text = token() if callable(token) else token
    if text:
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError("token: expected printable ASCII without spaces")
        headers["authorization"] = f"Bearer {text}"
    return list(headers.items())
