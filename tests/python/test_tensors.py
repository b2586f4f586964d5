"""Arrays become the API's tensors and come back as they were."""

import platform
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from ditserve import _api, _requests, _tensors, _wire

KINDS = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int64, np.int32, np.uint8, np.bool_]


def round_trip(array: np.ndarray) -> np.ndarray:
    message = b"".join(_tensors.tensor(1, array, "array"))
    rest, elements = _wire.cut(memoryview(message), (1, 3))
    return _tensors.received(_api.v1("Prompt").FromString(rest).emb, elements, _tensors.maker(array))


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_comes_back_as_it_was(kind):
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    back = round_trip(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()
    back[:] = 0  # It is the caller's.


def test_an_array_of_nothing_comes_back():
    back = round_trip(np.zeros((0, 3), np.float32))
    assert back.shape == (0, 3)


def test_views_and_other_byte_orders_are_written_row_by_row_in_little_endian():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for other in (array.T, array[::-1, ::2], array.astype(">f4")):
        assert (round_trip(other) == other).all()


def test_the_elements_of_a_contiguous_array_are_not_copied():
    array = np.zeros((2, 3), np.float32)
    array_elements = _tensors.tensor(1, array, "array")[-1]
    array[0, 0] = 1
    assert bytes(array_elements)[:4] == np.float32(1).tobytes()


def test_what_the_api_does_not_know_is_refused_by_name():
    with pytest.raises(TypeError, match=r"latents.dtype: expected .*float32.*'float64'"):
        _tensors.tensor(1, np.zeros(3), "latents")
    with pytest.raises(TypeError, match="latents: expected a numpy array or a torch tensor, found list"):
        _tensors.tensor(1, [1.0], "latents")


def test_without_ml_dtypes_bfloat16_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ditserve"):
        _tensors.numpy_dtype("bfloat16")


def test_elements_that_are_not_those_of_the_shape_are_refused():
    head = _api.v1("Tensor")(dtype=1, shape=[2, 3])
    with pytest.raises(ValueError, match=r"shape \[2, 3\], dtype 'float32' and 8 bytes"):
        _tensors.received(head, memoryview(bytes(8)), _tensors.maker(np.zeros(1)))
    with pytest.raises(ValueError, match="0 bytes"):
        _tensors.received(head, None, _tensors.maker(np.zeros(1)))
    with pytest.raises(ValueError, match="dtype ''"):
        _tensors.received(_api.v1("Tensor")(dtype=99, shape=[2]), memoryview(bytes(8)), _tensors.maker(np.zeros(1)))


def peak_bytes(do) -> int:
    """Most that is allocated at one time while it is done, its result included."""
    tracemalloc.start()
    try:
        result = do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        del result
        tracemalloc.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_a_tensor_takes_the_message_and_the_array_and_no_more(stream):
    latents, prompt = np.zeros((1, 16, 128, 128), np.float32), np.zeros((1, 1000, 3584), np.float32)
    make = _requests.forward_stream if stream else _requests.forward
    message = latents.nbytes + prompt.nbytes
    assert peak_bytes(lambda: make(latents, 0.5, prompt, None)) < 1.01 * message + 20_000

    call = make(latents, 0.5, prompt, None)
    output = _tensors.tensor(1, latents, "output")
    answer = b"".join(_wire.field(2, output) if stream else output)
    assert peak_bytes(lambda: call.read(answer)) < 1.01 * latents.nbytes + 20_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_messages_are_written_into_memory_that_is_there():
    program = """
import resource, ditserve
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    message = b"x" * (4 << 20)
    copy = message + b"x"
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(max([faults() for _ in range(5)][1:]))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 100  # Of 4 KiB; a message has 1024.


@pytest.mark.parametrize("path", [_requests._PROGRESS_TENSOR, _requests._RESULT_TENSOR])
def test_latents_of_a_loop_take_the_array_and_no_more(path):
    latents, prompt = np.zeros((4, 16, 128, 128), np.float32), np.zeros((1, 3, 3584), np.float32)
    call = _requests.denoise(prompt, None, height=1024, width=1024, seeds=1)
    answer = b"".join(_wire.field(path[0], _tensors.tensor(path[1], latents, "latents")))
    assert peak_bytes(lambda: call.read(answer)) < 1.01 * latents.nbytes + 20_000
