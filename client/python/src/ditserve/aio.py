"""The client for asyncio."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import grpc.aio

from . import _requests, reports
from ._calls import RunBase
from ._configured import Configured
from ._connection import Tls, Token, connect, metadata
from ._requests import Call, DenoiseOptions, ForwardOptions, PlanOptions, Prompt
from ._servers import Attempts, Servers
from ._tensors import Array, ArrayT, Number
from .errors import Cancelled, DitserveError, error_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

T = TypeVar("T")
ProgressT = TypeVar("ProgressT")
ResultT = TypeVar("ResultT")


class _Session:
    """Channels to the servers, and how calls are sent on them."""

    def __init__(self, servers: Servers, tls: Tls | bool, token: Token, retries: int) -> None:
        self._servers, self._tls, self._token, self._retries = servers, tls, token, retries
        self._channels: dict[str, Any] = {}
        self._calls: weakref.WeakSet[_UnderWay[Any]] = weakref.WeakSet()
        self._closed = False

    def register(self, call: _UnderWay[Any]) -> None:
        """It is cancelled when this is closed."""
        self._calls.add(call)

    async def close(self) -> None:
        self._closed = True
        for call in list(self._calls):
            call.cancel()
        for channel in list(self._channels.values()):
            await channel.close()

    async def attempts(self, timeout: float | None) -> Attempts:
        attempts = Attempts(self._servers, self._retries, timeout)
        patience = attempts.patience()
        await asyncio.gather(*(self._ask_for_figures(one, patience) for one in self._servers.claim_asking()))
        return attempts

    def send(self, call: Call[Any], attempts: Attempts) -> Any:
        """gRPC's call, which is awaited for the only answer."""
        method = self._channel(attempts.next_address()).unary_unary(call.path)
        return method(call.request, timeout=attempts.seconds_left(), metadata=metadata(self._token))

    def send_stream(self, call: Call[Any], attempts: Attempts) -> Any:
        """gRPC's call, of which the answers are read."""
        method = self._channel(attempts.next_address()).unary_stream(call.path)
        return method(call.request, timeout=attempts.seconds_left(), metadata=metadata(self._token))

    def _channel(self, address: str) -> Any:
        if self._closed:
            raise ValueError("the client is closed")
        # Made when it is used: it belongs to the event loop that runs then.
        if address not in self._channels:
            self._channels[address] = connect(grpc.aio, address, self._tls, len(self._servers.addresses) > 1)
        return self._channels[address]

    async def _ask_for_figures(self, address: str, patience: float) -> None:
        call = _requests.residency()
        told: reports.Residency | None = None
        with suppress(grpc.RpcError, DitserveError):
            method = self._channel(address).unary_unary(call.path)
            told = call.read(await method(call.request, timeout=patience, metadata=metadata(self._token)))
        self._servers.tell(address, told)


class _UnderWay(Generic[T]):
    """A call of several tries, one at a time. It is sent when it is first waited for."""

    def __init__(self, session: _Session, call: Call[T], timeout: float | None) -> None:
        self._session, self._call, self._timeout = session, call, timeout
        self._attempts: Attempts | None = None
        self._left = asyncio.Event()
        self._failed: Exception | None = None  # What it ended with, for who asks again.
        self._sent: Any = None
        session.register(self)

    def cancel(self) -> None:
        """Ends it, at the server too; whoever waits for it gets Cancelled."""
        self._left.set()
        if self._sent is not None:
            self._sent.cancel()

    def _send(self, attempts: Attempts) -> Any:
        raise NotImplementedError

    async def _message(self) -> Any:
        """What gRPC's call gives next."""
        raise NotImplementedError

    async def _next(self) -> Any:
        """The next answer; EOF where there is none. Sends the call again, if and when that is worth it."""
        with self._ended_by_errors():
            while not self._left.is_set():
                if self._attempts is None:
                    self._attempts = await self._session.attempts(self._timeout)
                    continue  # It may have been cancelled meanwhile.
                if self._sent is None:
                    self._sent = self._send(self._attempts)
                try:
                    message = await self._message()
                    return message if message is grpc.aio.EOF else self._call.read(message)
                except grpc.RpcError as failed:
                    wait = self._attempts.wait_after(error_of(failed))
                    self._sent = None
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._left.wait(), wait)
            raise Cancelled("the call was cancelled")

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """Whatever ends the waiting ends the call; who waits again is told the same, and of a task's end Cancelled."""
        if self._failed is not None:
            raise self._failed
        try:
            with self._cancelled_for_all():
                yield
        except BaseException as error:
            self._failed = error if isinstance(error, Exception) else Cancelled("the call was cancelled")
            self.cancel()
            raise

    @contextmanager
    def _cancelled_for_all(self) -> Iterator[None]:
        """A call that is cancelled raises CancelledError in a task that nobody cancelled: it gets Cancelled."""
        try:
            yield
        except asyncio.CancelledError:
            # (Python before 3.11 does not tell whether the task was cancelled too.)
            cancelling = getattr(asyncio.current_task(), "cancelling", None)
            if not self._left.is_set() or (cancelling is not None and cancelling()):
                raise
            raise Cancelled("the call was cancelled") from None


class _Asked(_UnderWay[T]):
    """A call of one answer."""

    def _send(self, attempts: Attempts) -> Any:
        return self._session.send(self._call, attempts)

    async def _message(self) -> Any:
        return await self._sent

    async def result(self) -> T:
        return await self._next()  # type: ignore[no-any-return]


class AsyncStream(_UnderWay[T]):
    """Answers as they come. As a context manager it cancels what is left of it at the end.

    Where a server is lost on the way, the call begins anew elsewhere, if there is another.

    Ownership: one that nobody holds any more is cancelled.
    Thread safety: of the client's event loop; one task waits, and any may cancel.
    """

    def __del__(self) -> None:
        if self._sent is not None:  # grpc.aio holds its calls until they end.
            with suppress(RuntimeError):  # The loop may be closed.
                self._loop.call_soon_threadsafe(self._sent.cancel)

    def _send(self, attempts: Attempts) -> Any:
        self._loop = asyncio.get_running_loop()
        return self._session.send_stream(self._call, attempts)

    async def _message(self) -> Any:
        return await self._sent.read()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        answer = await self._next()
        if answer is grpc.aio.EOF:
            raise StopAsyncIteration
        return answer  # type: ignore[no-any-return]

    async def finish(self) -> None:
        """Waits for the end, after an answer beside which it decides nothing: no error comes of it, and no other try."""
        with suppress(grpc.RpcError, Cancelled), self._cancelled_for_all():
            await self._sent.read()


class AsyncRun(RunBase[AsyncStream[ProgressT | ResultT], ResultT], Generic[ProgressT, ResultT]):
    """`Run`, for asyncio. It is sent when it is first waited for. As a context manager it cancels what is left of it at the
    end."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[ProgressT]:
        return self

    async def __anext__(self) -> ProgressT:
        if self._result is not None:
            raise StopAsyncIteration
        event: Any = await anext(self._stream)
        if self._is_result(event):
            self._result = event
            await self._stream.finish()
            raise StopAsyncIteration
        return event  # type: ignore[no-any-return]

    async def result(self, *, bar: bool = False) -> ResultT:
        """Waits for the end. bar: shows a tqdm bar meanwhile. Errors: see Client; ImportError where there is no tqdm."""
        with self._shown(bar) as show:
            async for progress in self:
                show(progress)
        return self._ended()


class AsyncClient(Configured[_Session]):
    """`Client`, for asyncio: the same arguments, methods and errors. Cancelling a task cancels its call, at the server too.

    A call holds what its arrays hold when it is made, which is when wrong arguments raise, and is sent when it is first
    waited for.

    Thread safety: of one event loop, which is the one that runs when its first call is made.
    """

    _make_session = _Session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what is under way."""
        await self._session.close()

    def forward(
        self,
        latents: ArrayT,
        timestep: Number | Array,
        prompt_emb: Array,
        prompt_emb_mask: Array | None = None,
        **options: Unpack[ForwardOptions],
    ) -> Coroutine[Any, Any, reports.Forward[ArrayT]]:
        """See Client.forward."""
        timeout = options.pop("timeout", self._timeout)
        call = _requests.forward(latents, timestep, prompt_emb, prompt_emb_mask, **options)
        return self._ask(call, timeout)

    def forward_stream(
        self,
        latents: ArrayT,
        timestep: Number | Array,
        prompt_emb: Array,
        prompt_emb_mask: Array | None = None,
        **options: Unpack[ForwardOptions],
    ) -> AsyncRun[reports.ForwardProgress, reports.Forward[ArrayT]]:
        """See Client.forward_stream."""
        timeout = options.pop("timeout", self._timeout)
        call = _requests.forward_stream(latents, timestep, prompt_emb, prompt_emb_mask, **options)
        return AsyncRun(AsyncStream(self._session, call, timeout), lambda event: isinstance(event, reports.Forward))

    def denoise(
        self,
        prompt: Prompt | Array,
        negative_prompt: Prompt | Array | None = None,
        *,
        height: int,
        width: int,
        **options: Unpack[DenoiseOptions],
    ) -> AsyncRun[reports.DenoiseProgress[Any], reports.Denoised[Any]]:
        """See Client.denoise."""
        timeout = options.pop("timeout", self._timeout)
        call = _requests.denoise(prompt, negative_prompt, height=height, width=width, **options)
        return AsyncRun(AsyncStream(self._session, call, timeout), lambda event: isinstance(event, reports.Denoised))

    async def plan(
        self,
        height: int,
        width: int,
        *,
        prompt_tokens: int,
        batch: int = 1,
        riders: int = 1,
        known_timestep: bool = False,
        **options: Unpack[PlanOptions],
    ) -> reports.Plan:
        """See Client.plan."""
        timeout = options.pop("timeout", self._timeout)
        call = _requests.plan(height, width, prompt_tokens, batch, riders, known_timestep, **options)
        return await self._ask(call, timeout)

    async def models(self) -> list[reports.Model]:
        """The loaded models."""
        return await self._ask(_requests.models(), self._timeout)

    async def model(self, name: str = "") -> reports.ModelTree:
        """One model's tree and modules; the server's only one if no name is given."""
        return await self._ask(_requests.model(name), self._timeout)

    async def profiles(self) -> reports.Profiles:
        """The configured profiles, and which one is the default."""
        return await self._ask(_requests.profiles(), self._timeout)

    async def residency(self) -> reports.Residency:
        """Where every byte is."""
        return await self._ask(_requests.residency(), self._timeout)

    def watch(self, interval: float = 1.0) -> AsyncStream[reports.Residency]:
        """`residency` at once and then every `interval` seconds, 0.1 to 60, until it is cancelled."""
        return AsyncStream(self._session, _requests.watch(interval), None)

    def _ask(self, call: Call[T], timeout: float | None) -> Coroutine[Any, Any, T]:
        return _Asked(self._session, call, timeout).result()
