"""Arrays of numpy and torch as the API's tensors, and back."""

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from . import _api
from ._wire import Buffer, field

if TYPE_CHECKING:
    import torch

    Array: TypeAlias = npt.NDArray[Any] | torch.Tensor
else:
    Array = Any

ArrayT = TypeVar("ArrayT", bound="Array")
Number: TypeAlias = "float | np.floating[Any] | np.integer[Any]"
# Makes an array of a dtype's name, a shape and its elements.
Maker = Callable[[str, "tuple[int, ...]", memoryview], ArrayT]

_Tensor = _api.v1("Tensor")
(_DATA,) = _api.path("Tensor", "data")
# glibc gives memory back to the system where what is free at its end is twice the largest block that was ever freed: so a
# message and gRPC's copy of it would be given back after each call, and asked for page by page at the next.
np.empty(31 << 20, np.uint8)
_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


def is_torch(array: object) -> bool:
    """Without importing it: who has a tensor has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def dtype_name(array: Array) -> str:
    """As the API names it: "float32"."""
    return str(array.dtype).removeprefix("torch.") if is_torch(array) else array.dtype.name


def require_array(array: object, what: str) -> None:
    """Errors: TypeError by the name `what`."""
    if not is_torch(array) and not isinstance(array, np.ndarray):
        raise TypeError(f"{what}: expected a numpy array or a torch tensor, found {type(array).__name__}")


def tensor(number: int, array: "Array | None", what: str) -> list[Buffer]:
    """A field that holds the array; nothing where there is none. `what` is its name in errors.

    Its elements are viewed, not copied, where it is contiguous and in this process' memory.
    """
    if array is None:
        return []
    require_array(array, what)
    try:
        dtype = _api.number("Dtype", dtype_name(array))
    except ValueError as error:
        raise TypeError(f"{what}.{error}") from None
    head = _Tensor(dtype=dtype, shape=array.shape).SerializeToString()
    return field(number, [head, *field(_DATA, [_elements(array)])])


def maker(array: ArrayT) -> "Maker[ArrayT]":
    """Makes arrays of this one's kind: of torch on the same device, or of numpy."""
    if not is_torch(array):
        return _make_numpy  # type: ignore[return-value]
    device: Any = array.device

    def make(dtype: str, shape: tuple[int, ...], elements: memoryview) -> Any:
        import torch

        if not elements:  # Which frombuffer refuses.
            return torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        return torch.frombuffer(bytearray(elements), dtype=getattr(torch, dtype)).reshape(shape).to(device)

    return make


def received(head: Any, elements: "memoryview | None", make: "Maker[ArrayT]") -> ArrayT:
    """The array of a tensor whose elements were cut out of its message.

    Errors: ValueError where they are not those of its shape.
    """
    elements = elements or memoryview(b"")
    dtype, shape = _api.name("Dtype", head.dtype), tuple(head.shape)
    if len(elements) != math.prod(shape) * _SIZES.get(dtype, 0):
        raise ValueError(f"a tensor of shape {list(shape)}, dtype {dtype!r} and {len(elements)} bytes")
    return make(dtype, shape, elements)


def numpy_dtype(name: str) -> "np.dtype[Any]":
    """Errors: ImportError where numpy has no such dtype without ml_dtypes."""
    if name in ("bfloat16", "float8_e4m3fn"):
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError(f"numpy has no {name} without ml_dtypes: pip install ditserve[bfloat16]") from None
        name = getattr(ml_dtypes, name)
    return np.dtype(name)


def _elements(array: Any) -> memoryview:
    """Row-major and little-endian, as bytes."""
    if is_torch(array):
        import torch

        rows = array.detach().cpu().contiguous()
        # (A contiguous tensor of one element may have any stride, with which it can't be viewed as bytes.)
        array = rows.as_strided((rows.numel(),), (1,)).view(torch.uint8).numpy()
    elif array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _make_numpy(dtype: str, shape: tuple[int, ...], elements: memoryview) -> "npt.NDArray[Any]":
    return np.frombuffer(bytearray(elements), dtype=numpy_dtype(dtype)).reshape(shape)
