"""Calls under way, for code that waits."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import grpc

from . import _requests
from ._bar import progress_bar
from ._connection import Tls, Token, connect, metadata
from ._requests import Call
from ._servers import Attempts, Servers
from .errors import Cancelled, DitserveError, Internal, error_of
from .reports import Residency

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
ProgressT = TypeVar("ProgressT")
ResultT = TypeVar("ResultT")


class Cancellable(Protocol):
    def cancel(self) -> None: ...


StreamT = TypeVar("StreamT", bound=Cancellable)


class Session:
    """Channels to the servers, and how calls are sent on them. Thread safety: thread-safe."""

    def __init__(self, servers: Servers, tls: Tls | bool, token: Token, retries: int) -> None:
        self.addresses, self._servers, self._token, self._retries = servers.addresses, servers, token, retries
        self._channels = {address: connect(grpc, address, tls, len(servers.addresses) > 1) for address in servers.addresses}
        self._lock = threading.Lock()
        self._calls: weakref.WeakSet[_UnderWay[Any]] = weakref.WeakSet()
        self.closed = False

    def register(self, call: _UnderWay[Any]) -> None:
        """It is told when this is closed."""
        with self._lock:
            self._calls.add(call)

    def close(self) -> None:
        self.closed = True
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.closed()
        for channel in self._channels.values():
            channel.close()

    def attempts(self, timeout: float | None, beside: str = "", only: str = "") -> Attempts:
        servers = Servers([only], "round_robin") if only else self._servers
        retries = 0 if only and len(self.addresses) > 1 else self._retries  # The others are asked beside it.
        attempts = Attempts(servers, retries, timeout, beside)
        if not beside:  # Else there is nothing to choose, and who waits for figures may miss the sweep.
            self._ask_for_figures(servers.claim_asking(), attempts.patience())
        return attempts

    def send(self, call: Call[Any], attempts: Attempts) -> Any:
        """gRPC's future of the only answer."""
        method = self._channels[attempts.next_address()].unary_unary(call.path)
        return method.future(call.request, attempts.seconds_left(), metadata(self._token))

    def send_stream(self, call: Call[Any], attempts: Attempts) -> Any:
        """gRPC's iterator of the answers."""
        method = self._channels[attempts.next_address()].unary_stream(call.path)
        return method(call.request, attempts.seconds_left(), metadata(self._token))

    def _ask_for_figures(self, addresses: Sequence[str], patience: float) -> None:
        call = _requests.residency()
        asked = {
            address: self._channels[address].unary_unary(call.path).future(call.request, patience, metadata(self._token))
            for address in addresses
        }
        for address, future in asked.items():
            told: Residency | None = None
            with suppress(grpc.RpcError, grpc.FutureCancelledError, DitserveError):
                told = call.read(future.result())
            self._servers.tell(address, told)


class _UnderWay(Generic[T]):
    """A call of several tries, one at a time."""

    def __init__(self, session: Session, call: Call[T], timeout: float | None) -> None:
        self._session, self._call, self._timeout = session, call, timeout
        self._attempts: Attempts
        self._left = threading.Event()
        self._failed: Exception | None = None  # What it ended with, for who asks again.
        self._sent: Any = None
        self._waits = False  # To be sent again.
        session.register(self)

    def send(self, beside: str = "", only: str = "") -> Self:
        """Sends it, where it is neither sent nor cancelled.

        beside: the address of the server that is tried first. only: of the one that is tried.
        """
        if self._sent is None and not self._left.is_set():
            self._attempts = self._session.attempts(self._timeout, beside, only)
            self._try()
        return self

    def _try(self) -> None:
        self._sent = self._send()
        if self._left.is_set():  # Meanwhile, by another thread.
            self._sent.cancel()

    def _send(self) -> Any:
        raise NotImplementedError

    def cancel(self) -> None:
        """Ends it, at the server too; whoever waits for it gets Cancelled."""
        self._left.set()
        if self._sent is not None:
            self._sent.cancel()

    def closed(self) -> None:
        """The channels are about to be: who waits to be sent again is not."""
        if self._waits:
            self._left.set()

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """Whatever ends the waiting ends the call; who waits again is told the same, and of an interrupt Cancelled."""
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except BaseException as error:
            self._failed = error if isinstance(error, Exception) else Cancelled("the call was cancelled")
            self.cancel()
            raise

    def _try_again(self, failed: grpc.RpcError | grpc.FutureCancelledError) -> None:
        """Sends it again, if and when that is worth it. Errors: else, what the failure means."""
        if isinstance(failed, grpc.FutureCancelledError):
            raise Cancelled("the call was cancelled") from None
        wait = self._attempts.wait_after(error_of(failed))
        self._waits = True
        if self._session.closed or self._left.wait(wait):
            raise Cancelled("the call was cancelled")
        self._waits = False
        try:
            self._try()
        except ValueError:  # The channel was closed meanwhile.
            if self._session.closed:
                raise Cancelled("the call was cancelled") from None
            raise


class Pending(_UnderWay[T]):
    """A call whose answer is waited for later.

    Ownership: one that nobody holds any more is cancelled.
    Thread safety: one thread waits; any may cancel.
    """

    @property
    def address(self) -> str:
        """The server's that it was sent to, or ""."""
        return self._attempts.address if self._sent is not None else ""

    def _send(self) -> Any:
        return self._session.send(self._call, self._attempts)

    def done(self) -> bool:
        """Whether nothing is under way: there is an answer, an error, or a refusal, after which `result` may send it again.

        False before it is sent, True once it is cancelled.
        """
        return self._left.is_set() or (self._sent is not None and bool(self._sent.done()))

    def result(self) -> T:
        """Sends it, where it is not sent yet, and waits for the answer. Errors: see Client; a second time the same."""
        with self._ended_by_errors():
            self.send()
            while not self._left.is_set():
                try:
                    return self._call.read(self._sent.result())
                except (grpc.RpcError, grpc.FutureCancelledError) as failed:
                    self._try_again(failed)
            raise Cancelled("the call was cancelled")


class Stream(_UnderWay[T]):
    """Answers as they come. As a context manager it cancels what is left of it at the end.

    Where a server is lost on the way, the call begins anew elsewhere, if there is another.
    """

    def _send(self) -> Any:
        return self._session.send_stream(self._call, self._attempts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._ended_by_errors():
            while True:
                try:
                    message = next(self._sent, None)
                    if message is None:
                        break
                    return self._call.read(message)
                except grpc.RpcError as failed:
                    self._try_again(failed)
        raise StopIteration

    def finish(self) -> None:
        """Waits for the end, after an answer beside which it decides nothing: no error comes of it, and no other try."""
        with self._ended_by_errors(), suppress(grpc.RpcError):
            next(self._sent, None)


class RunBase(Generic[StreamT, ResultT]):
    """A run of either client: what its stream is, and which of its answers is the result."""

    def __init__(self, stream: StreamT, is_result: Callable[[Any], bool]) -> None:
        self._stream, self._is_result = stream, is_result
        self._result: ResultT | None = None

    def cancel(self) -> None:
        """Ends it at the next module; whoever waits for it gets Cancelled."""
        self._stream.cancel()

    @contextmanager
    def _shown(self, bar: bool) -> Iterator[Callable[[Any], None]]:
        """Gives what shows a progress. Whatever ends it ends the run."""
        try:
            with progress_bar(bar) as show:
                yield show
        except BaseException:
            self.cancel()
            raise

    def _ended(self) -> ResultT:
        if self._result is None:
            raise Internal("the stream ended without a result")
        return self._result


class Run(RunBase[Stream[ProgressT | ResultT], ResultT], Generic[ProgressT, ResultT]):
    """A pass, or a loop of them: an iterator of its progress, which has a result at its end.

        for progress in run: print(progress.modules_done)
        latents = run.result().latents

    As a context manager it cancels what is left of it at the end.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[ProgressT]:
        return self

    def __next__(self) -> ProgressT:
        if self._result is not None:
            raise StopIteration
        event: Any = next(self._stream)
        if self._is_result(event):
            self._result = event
            self._stream.finish()
            raise StopIteration
        return event  # type: ignore[no-any-return]

    def result(self, *, bar: bool = False) -> ResultT:
        """Waits for the end. bar: shows a tqdm bar meanwhile. Errors: see Client; ImportError where there is no tqdm."""
        with self._shown(bar) as show:
            for progress in self:
                show(progress)
        return self._ended()
