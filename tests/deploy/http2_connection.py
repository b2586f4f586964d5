"""An HTTP/2 client that sends what it is told to, frame by frame, whether or not a peer may: what a library would refuse
to send is what a server must survive."""

import select
import socket
import ssl
import struct
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
INITIAL_WINDOW_SIZE = 0x4
DEFAULT_WINDOW, MAX_FRAME = 65535, 16384
ERRORS = ("NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR "
          "REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED"
          ).split()
WAIT_SECONDS = 30  # For a peer that neither reads, nor writes, nor closes.
NOT_ACCEPTED = "not accepted"  # So begins the end of a connection that never was one.


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *value) for value in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def rst_stream(stream: int, error: str = "CANCEL") -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", ERRORS.index(error)))


def hpack_integer(value: int, bits: int, first: int) -> bytes:
    """RFC 7541, 5.1; `first` has what stands before the integer in its first byte."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    encoded, value = bytearray([first | most]), value - most
    while value >= 128:
        encoded.append(value % 128 | 128)
        value //= 128
    return bytes(encoded + bytes([value]))


def hpack_string(text: str) -> bytes:
    return hpack_integer(len(text), 7, 0) + text.encode("ascii")


def hpack_literal(name: str, value: str, indexed: bool = False) -> bytes:
    """A header field that is spelt out; `indexed`: and entered into the peer's dynamic table."""
    return bytes([0x40 if indexed else 0]) + hpack_string(name) + hpack_string(value)


def hpack_reference(index: int) -> bytes:
    return hpack_integer(index, 7, 0x80)


@dataclass(frozen=True)
class Target:
    """Who is attacked, and with which call."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    token: str = ""
    path: str = "/grpc.health.v1.Health/Check"

    def headers(self, *more: tuple[str, str]) -> bytes:
        """The header block of a gRPC call."""
        fields = [(":method", "POST"), (":scheme", "https" if self.tls else "http"), (":path", self.path),
                  (":authority", self.server_name or self.host), ("te", "trailers"), ("content-type", "application/grpc")]
        if self.token:
            fields.append(("authorization", f"Bearer {self.token}"))
        return b"".join(hpack_literal(*field) for field in (*fields, *more))


@dataclass
class Fate:
    """What a connection has met with."""

    end: str = ""  # How it ended; "" while it has not.
    answered: int = 0  # Streams on which headers came.
    ended: int = 0  # By the peer, with headers: a gRPC call with its status.
    reset: int = 0  # Streams that the peer reset.
    pongs: int = 0
    goaways: int = 0  # Of either kind.


@dataclass
class Connection:
    """One connection. `acknowledges`: the peer's SETTINGS; `reads`: what the peer sends, while it sends itself.
    Not thread-safe. A connection that ends is no error: see `fate`."""

    target: Target
    acknowledges: bool = True
    reads: bool = True
    first_settings: dict[int, int] = field(default_factory=dict)

    def __post_init__(self):
        self.fate = Fate()
        self.bytes_sent = 0
        self.data = b""  # Of the streams' DATA frames, one after the other.
        self._received = bytearray()
        self._answers = b""  # What is due to the peer's frames.
        self.last_stream = 0
        self._windows = defaultdict(lambda: DEFAULT_WINDOW)  # Of the streams; 0: of all.
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.create_connection((self.target.host, self.target.port), timeout=WAIT_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.target.tls is not None:
                name = self.target.server_name or self.target.host
                self._socket = self.target.tls.wrap_socket(self._socket, server_hostname=name)
                if self._socket.selected_alpn_protocol() != "h2":
                    raise ssl.SSLError("the peer does not speak HTTP/2")
            self._socket.setblocking(False)
        except OSError as error:
            self.fate.end = f"{NOT_ACCEPTED}: {error}"
        self.send(PREFACE + settings(self.first_settings))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._socket is not None:
            self._socket.close()

    @property
    def is_open(self) -> bool:
        return not self.fate.end

    def next_stream(self) -> int:
        self.last_stream += 2 if self.last_stream else 1
        return self.last_stream

    def send(self, frames: bytes) -> bool:
        """Sends all of it, and reads meanwhile where it reads at all; false once the connection has ended."""
        left, self._answers = memoryview(self._answers + frames), b""
        while left and self.is_open:
            if self.reads and not self._receive():
                break
            try:
                sent = self._socket.send(left)
                self.bytes_sent += sent
                left = left[sent:]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                if not self._ready(reads=self.reads, writes=True):
                    self.fate.end = "not read any more"
            except OSError as error:
                self._receive()  # It may have said why.
                self.fate.end = self.fate.end or f"closed: {error.strerror or error}"
        return self.is_open

    def send_message(self, stream: int, message: bytes) -> None:
        """A gRPC message, the last of its stream, as far as the peer's windows allow; ends with the stream or connection."""
        left, fate = memoryview(struct.pack(">BI", 0, len(message)) + message), self.fate
        while left and self.is_open and not fate.answered and not fate.reset:
            size = min(len(left), MAX_FRAME, self._windows[0], self._windows[stream])
            if not size:
                self.await_frames(lambda: fate.answered or fate.reset or min(self._windows[0], self._windows[stream]) > 0)
                continue
            self._windows[0] -= size
            self._windows[stream] -= size
            self.send(frame(DATA, END_STREAM if size == len(left) else 0, stream, bytes(left[:size])))
            left = left[size:]

    def poll(self) -> None:
        """Takes what has come, without waiting."""
        if self.is_open:
            self._receive()

    def settle(self) -> None:
        """Waits until the peer has read all that was sent, or the connection has ended."""
        if self.send(frame(PING, 0, 0, b"settled?")):
            self.await_frames(lambda: self.fate.pongs > 0)

    def await_frames(self, until: Callable[[], bool]) -> bool:
        """Reads until `until()` holds; false where the connection ended or was silent before that."""
        while not until() and self.is_open and self._ready(reads=True, writes=False):
            self._receive()
            self.send(b"")
        return until()

    def _ready(self, reads: bool, writes: bool) -> bool:
        return any(select.select([self._socket] if reads else [], [self._socket] if writes else [], [], WAIT_SECONDS))

    def _receive(self) -> bool:
        """Takes what has come; false once the connection has ended."""
        try:
            while block := self._socket.recv(1 << 16):
                self._received += block
                self._take_frames()
            self.fate.end = self.fate.end or "closed"
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self.fate.end = self.fate.end or f"closed: {error.strerror or error}"
        return self.is_open

    def _take_frames(self) -> None:
        while len(self._received) >= 9:
            size = int.from_bytes(self._received[:3], "big")
            if len(self._received) < 9 + size:
                return
            kind, flags, stream = struct.unpack(">BBI", self._received[3:9])
            payload = bytes(self._received[9:9 + size])
            del self._received[:9 + size]
            self._answers += self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        """What is to be answered."""
        if kind == SETTINGS and not flags & ACK and self.acknowledges:
            return frame(SETTINGS, ACK, 0)
        if kind == PING and not flags & ACK:
            return frame(PING, ACK, 0, payload)
        if kind == PING:
            self.fate.pongs += 1
        elif kind == HEADERS:
            self.fate.answered += 1
            self.fate.ended += bool(flags & END_STREAM)
        elif kind == RST_STREAM:
            self.fate.reset += 1
        elif kind == WINDOW_UPDATE:
            self._windows[stream] += int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.fate.goaways += 1
            code = int.from_bytes(payload[4:8], "big")
            name = ERRORS[code] if code < len(ERRORS) else str(code)
            if code:  # Else streams that are there go on (RFC 9113, 6.8).
                self.fate.end = f"GOAWAY {name} {payload[8:].decode(errors='replace')}".strip()
        elif kind == DATA and payload:
            self.data += payload
            return window_update(0, len(payload))
        return b""


# gRPC messages: HealthCheckResponse{status: ...}.
SERVING = b"\x00\x00\x00\x00\x02\x08\x01"
NOT_SERVING = b"\x00\x00\x00\x00\x02\x08\x02"


class HealthWatcher:
    """A Health.Watch, by one who is told when the server stops to serve."""

    def __init__(self, target: Target):
        self._connection = Connection(replace(target, path="/grpc.health.v1.Health/Watch"))
        connection, stream = self._connection, self._connection.next_stream()
        call = frame(HEADERS, END_HEADERS, stream, connection.target.headers())
        connection.send(call + frame(DATA, END_STREAM, stream, bytes(5)))

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        self._connection.__exit__(*arguments)

    def await_told(self, *statuses: bytes) -> None:
        """Until it has been told these, one after the other; raises ConnectionError where it was told something else."""
        connection, expected = self._connection, b"".join(statuses)
        for _ in range(10):  # A device that hangs is given time: under a sanitizer more than one wait of the connection's.
            if connection.await_frames(lambda: len(connection.data) >= len(expected)) or not connection.is_open:
                break
        if connection.data != expected:
            raise ConnectionError(f"health: told {connection.data!r}; {connection.fate.end or 'and then nothing'}")


class HealthClient:
    """A well-behaved client that asks again and again on one connection whether the server serves."""

    def __init__(self, target: Target):
        self._connection = Connection(target)
        self._request = target.headers()

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        self._connection.__exit__(*arguments)

    def check(self) -> float:
        """Seconds until the answer; raises ConnectionError where it is not that the server serves."""
        connection, stream = self._connection, self._connection.next_stream()
        connection.data, begun = b"", time.monotonic()
        connection.send(frame(HEADERS, END_HEADERS, stream, self._request) + frame(DATA, END_STREAM, stream, bytes(5)))
        over = connection.fate.reset + connection.fate.ended
        connection.await_frames(lambda: connection.fate.reset + connection.fate.ended > over)
        if connection.data != SERVING:
            raise ConnectionError(f"health: told {connection.data!r}; {connection.fate.end or 'the connection is open'}")
        return time.monotonic() - begun
