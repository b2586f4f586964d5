"""Messages are cut and put together as protobuf reads and writes them."""

import numpy as np
import pytest

from ditserve import _api, _wire

Response = _api.v1("ForwardResponse")


def test_a_field_that_was_put_together_is_what_protobuf_reads():
    for length in (0, 1, 127, 128, 70000):
        data = np.arange(length, dtype=np.uint8).data
        tensor = _api.v1("Tensor").FromString(b"".join(_wire.field(3, [data])))
        assert tensor.data == bytes(data)


def test_a_field_that_is_cut_out_leaves_the_rest():
    whole = Response(output={"dtype": 1, "shape": [2, 300], "data": b"elements"}, stats={"riders": 3, "device": "cpu"})
    whole.stats.queue.nanos = 5
    rest, found = _wire.cut(memoryview(whole.SerializeToString()), (1, 3))
    assert bytes(found) == b"elements"
    whole.output.data = b""
    assert Response.FromString(rest) == whole


def test_of_several_places_the_field_is_cut_out_where_it_stands():
    message = _api.v1("DenoiseResponse")(progress={"modules_done": 3, "latents": {"dtype": 1, "data": b"elements"}})
    places = [_api.path("DenoiseResponse", event, "latents", "data") for event in ("result", "progress")]
    rest, found = _wire.cut(memoryview(message.SerializeToString()), *places)
    assert bytes(found) == b"elements"
    message.progress.latents.data = b""
    assert _api.v1("DenoiseResponse").FromString(rest) == message


def test_what_is_not_there_is_not_found():
    message = Response(stats={"riders": 3}).SerializeToString()
    rest, found = _wire.cut(memoryview(message), (1, 3))
    assert found is None
    assert rest == message


def test_fields_of_every_kind_are_passed_over():
    # Of a later server: a fixed64 and a fixed32 of numbers that this client does not know.
    message = b"\x79" + bytes(8) + b"\x7d" + bytes(4) + Response(output={"data": b"e"}).SerializeToString()
    rest, found = _wire.cut(memoryview(message), (1, 3))
    assert bytes(found) == b"e"
    assert rest.startswith(message[:14])


@pytest.mark.parametrize("message", [
    b"\x0a\x05abc",  # Ends within a field.
    b"\x0a\xff",  # Ends within a length.
    b"\x08" + b"\xff" * 10,  # A number of more than 64 bits.
    b"\x0b",  # A group, which protobuf has given up.
])
def test_what_is_no_message_is_refused(message):
    with pytest.raises(ValueError, match=r"message|number|kind"):
        _wire.cut(memoryview(message), (1, 3))
