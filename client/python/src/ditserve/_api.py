"""The API's messages and methods, made of its description (`api.binpb`, which setup.py makes of the protos).

In a pool of their own: other packages have a google.rpc too, and protobuf allows a name once a pool.
"""

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_pool = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    resources.files("ditserve").joinpath("api.binpb").read_bytes()
).file:
    _pool.AddSerializedFile(_file.SerializeToString())


def message(name: str) -> Any:
    """The class of a message, such as "ditserve.v1.ForwardRequest"."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


def v1(name: str) -> Any:
    return message(f"ditserve.v1.{name}")


def path(message: str, *fields: str) -> tuple[int, ...]:
    """Numbers of fields from the outside in: of path("ForwardResponse", "output", "data"), (1, 3)."""
    inside: Any = _pool.FindMessageTypeByName(f"ditserve.v1.{message}")
    numbers = []
    for name in fields:
        field = inside.fields_by_name[name]
        numbers.append(field.number)
        inside = field.message_type
    return tuple(numbers)


def number(enum: str, value: str) -> int:
    """Of an enum's value as Python writes it: number("Priority", "batch") is PRIORITY_BATCH."""
    values = _names(enum)
    if value not in values:
        raise ValueError(f"{enum.lower()}: expected {', '.join(sorted(values))}; found {value!r}")
    return values[value]


def name(enum: str, number: int) -> str:
    """The reverse of `number`. "" where it is none that this client knows."""
    return next((name for name, value in _names(enum).items() if value == number), "")


def _names(enum: str) -> dict[str, int]:
    values = _pool.FindEnumTypeByName(f"ditserve.v1.{enum}").values
    # The first is PRIORITY_UNSPECIFIED: what stands before that stands before all.
    prefix = len(values[0].name) - len("UNSPECIFIED")
    return {value.name[prefix:].lower(): value.number for value in values[1:]}
