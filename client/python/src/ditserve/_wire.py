"""Protobuf's wire format, as far as it takes to send and receive tensors without copies of them.

Protobuf copies bytes when a field is set, again when it writes a message, and as often when it reads one. Here a tensor's
elements are copied once, from the array into the message or from the message into the array. Everything else of a
message is left to protobuf.
"""

from collections.abc import Iterator
from typing import TypeAlias

Buffer: TypeAlias = "bytes | memoryview"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def field(number: int, pieces: list[Buffer]) -> list[Buffer]:
    """A field of bytes, or of a message, with these contents."""
    return [_head(number, sum(map(len, pieces))), *pieces]


def cut(message: memoryview, *paths: tuple[int, ...]) -> tuple[bytes, memoryview | None]:
    """Takes out the field of bytes that stands at one of `paths` (numbers of fields, from the outside in).

    Returns the message without it, and its contents, or None where there is no such field. One at most is expected.

    Errors: ValueError where it is no message.
    """
    rest: list[Buffer] = []
    found = None
    for number, contents, whole in _fields(message):
        inside = [path[1:] for path in paths if path[0] == number]
        if not inside or contents is None:
            rest.append(whole)
        elif () in inside:
            found = contents
        else:
            inner, found = cut(contents, *inside)
            rest += field(number, [inner])
    return b"".join(rest), found


def _head(number: int, length: int) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None, memoryview]]:
    """Each field's number; its contents, if these are bytes; and all of it."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _read_varint(message, at)
        contents, kind = None, tag & 7
        if kind == _BYTES:
            length, at = _read_varint(message, at)
            contents = message[at : at + length]
            at += length
        elif kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > len(message):
            raise ValueError("a message that ends within a field")
        yield tag >> 3, contents, message[begin:at]


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")
