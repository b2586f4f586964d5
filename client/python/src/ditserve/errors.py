"""What calls raise: a class for each gRPC status, with what google.rpc's details tell (docs/errors.md)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
from google.protobuf.message import DecodeError

from . import _api

__all__ = [
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "DitserveError",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "Quota",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]


@dataclass(frozen=True)
class Quota:
    """What a request that can never fit needs at least, of which memory ("device" or "host"), and that memory's budget."""

    memory: str
    needed_bytes: int
    budget_bytes: int


class DitserveError(Exception):
    """A call failed.

    message: what is wrong, what was found and what was expected.
    field: the path of the request's field that is wrong ("latents.shape"), or "".
    retry_after: seconds after which it is worth trying again; None where it is not.
    quota: of a request that can never fit, what it needs.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self, message: str, *, field: str = "", retry_after: float | None = None, quota: Quota | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.field, self.retry_after, self.quota = message, field, retry_after, quota

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidArgument(DitserveError, ValueError):
    """`field` of the request is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(DitserveError, LookupError):
    """The server has no such model, profile or device: `field` says which."""

    code = grpc.StatusCode.NOT_FOUND


class FailedPrecondition(DitserveError):
    """This server can never run the request as it is; `quota` says what it would take."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(DitserveError):
    """The server is full now, and `retry_after` says how long; or, without it, the message is too large."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(DitserveError, ConnectionError):
    """No server answers, or it is stopping or, where there is `retry_after`, loading."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(DitserveError, TimeoutError):
    """The call's timeout has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(DitserveError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class DataLoss(DitserveError):
    """The checkpoint is damaged, or was changed underneath the server."""

    code = grpc.StatusCode.DATA_LOSS


class Unauthenticated(DitserveError):
    """No token was sent, or one that is not the server's, or not any more."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(DitserveError, PermissionError):
    """The token lacks the scope."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(DitserveError):
    """What listens at this address is no ditserve of this version, or another port of it."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(DitserveError):
    """A fault of the server, or an answer that can't be read."""

    code = grpc.StatusCode.INTERNAL


_CLASSES: dict[grpc.StatusCode, type[DitserveError]] = {error.code: error for error in DitserveError.__subclasses__()}
_TRAILER = "grpc-status-details-bin"
_DETAILS = {name: _api.message(f"google.rpc.{name}") for name in ("BadRequest", "QuotaFailure", "RetryInfo")}
_Status = _api.message("google.rpc.Status")


def error_of(failed: grpc.RpcError) -> DitserveError:
    """Ours for gRPC's, which tells its code, details and trailers as a call does."""
    call: Any = failed
    # (Some versions' metadata of asyncio is no mapping.)
    details = _details(next((value for key, value in call.trailing_metadata() or () if key == _TRAILER), b""))
    field, retry_after, quota = "", None, None
    if "BadRequest" in details and details["BadRequest"].field_violations:
        field = details["BadRequest"].field_violations[0].field
    if "RetryInfo" in details:
        delay = details["RetryInfo"].retry_delay
        retry_after = delay.seconds + delay.nanos / 1e9
    if "QuotaFailure" in details and details["QuotaFailure"].violations:
        quota = _quota(details["QuotaFailure"].violations[0])
    error = _CLASSES.get(call.code(), DitserveError)
    return error(call.details() or "", field=field, retry_after=retry_after, quota=quota)


def _details(trailer: bytes) -> dict[str, Any]:
    """By the names of their messages. Those that can't be read are left out: the status itself says what is wrong."""
    found = {}
    try:
        for detail in _Status.FromString(trailer).details:
            name = detail.type_url.rpartition(".")[2]
            if name in _DETAILS:
                found[name] = _DETAILS[name].FromString(detail.value)
    except DecodeError:
        pass
    return found


def _quota(violation: Any) -> Quota | None:
    dimensions = dict(violation.quota_dimensions)
    needed = dimensions.get("needed_bytes", "")
    if not needed.isdecimal():
        return None
    return Quota(dimensions.get("memory", ""), int(needed), violation.quota_value)
