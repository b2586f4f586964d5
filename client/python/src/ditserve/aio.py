"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import grpc.aio

from . import _requests, reports
from ._bar import progress_bar
from ._connection import Tls, Token, connect, metadata
from ._requests import Call, DenoiseOptions, ForwardOptions, PlanOptions, Prompt
from ._servers import Attempts, Balance, Servers
from ._tensors import Array, ArrayT
from .errors import Cancelled, DitserveError, Internal, error_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

T = TypeVar("T")
ProgressT = TypeVar("ProgressT")
ResultT = TypeVar("ResultT")


class AsyncClient:
    """`Client`, for asyncio: the same arguments, methods and errors. Cancelling a task cancels its call, at the server too.

    Thread safety: of one event loop, which is the one that runs when its first call is made.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:50051",
        *,
        token: Token = "",
        tls: Tls | bool = False,
        retries: int = 5,
        timeout: float | None = None,
        balance: Balance = "least_waiting",
    ) -> None:
        servers = Servers([address] if isinstance(address, str) else address, balance)
        self._session = _Session(servers, tls, token, retries)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what is under way."""
        await self._session.close()

    async def forward(
        self,
        latents: ArrayT,
        timestep: float | Array,
        prompt_emb: Array,
        prompt_emb_mask: Array | None = None,
        **options: Unpack[ForwardOptions],
    ) -> reports.Forward[ArrayT]:
        """See Client.forward."""
        timeout = options.pop("timeout", self._timeout)
        call = _requests.forward(latents, timestep, prompt_emb, prompt_emb_mask, **options)
        return await self._session.ask(call, timeout)

    def forward_stream(
        self,
        latents: ArrayT,
        timestep: float | Array,
        prompt_emb: Array,
        prompt_emb_mask: Array | None = None,
        **options: Unpack[ForwardOptions],
    ) -> AsyncRun[reports.ForwardProgress, reports.Forward[ArrayT]]:
        """See Client.forward_stream. It is sent when it is first waited for."""
        timeout = options.pop("timeout", self._timeout)
        call = _requests.forward_stream(latents, timestep, prompt_emb, prompt_emb_mask, **options)
        return AsyncRun(self._session.stream(call, timeout), lambda event: isinstance(event, reports.Forward))

    def denoise(
        self,
        prompt: Prompt | Array,
        negative_prompt: Prompt | Array | None = None,
        *,
        height: int,
        width: int,
        **options: Unpack[DenoiseOptions],
    ) -> AsyncRun[reports.DenoiseProgress[Any], reports.Denoised[Any]]:
        """See Client.denoise. It is sent when it is first waited for."""
        timeout = options.pop("timeout", self._timeout)
        call = _requests.denoise(prompt, negative_prompt, height=height, width=width, **options)
        return AsyncRun(self._session.stream(call, timeout), lambda event: isinstance(event, reports.Denoised))

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
        return await self._session.ask(call, timeout)

    async def models(self) -> list[reports.Model]:
        """The loaded models."""
        return await self._session.ask(_requests.models(), self._timeout)

    async def model(self, name: str = "") -> reports.ModelTree:
        """One model's tree and modules; the server's only one if no name is given."""
        return await self._session.ask(_requests.model(name), self._timeout)

    async def profiles(self) -> reports.Profiles:
        """The configured profiles, and which one is the default."""
        return await self._session.ask(_requests.profiles(), self._timeout)

    async def residency(self) -> reports.Residency:
        """Where every byte is."""
        return await self._session.ask(_requests.residency(), self._timeout)

    def watch(self, interval: float = 1.0) -> AsyncStream[reports.Residency]:
        """`residency` at once and then every `interval` seconds, 0.1 to 60, until it is left or its task cancelled."""
        return AsyncStream(self._session.stream(_requests.watch(interval), None))


class AsyncStream(Generic[T]):
    """Answers as they come. As a context manager it cancels what is left of it at the end."""

    def __init__(self, answers: AsyncGenerator[T, None]) -> None:
        self._answers = answers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._answers.aclose()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return await anext(self._answers)


class AsyncRun(Generic[ProgressT, ResultT]):
    """`Run`, for asyncio. As a context manager it cancels what is left of it at the end."""

    def __init__(self, events: AsyncGenerator[ProgressT | ResultT, None], is_result: Callable[[Any], bool]) -> None:
        self._events, self._is_result = events, is_result
        self._result: ResultT | None = None
        self._failed: DitserveError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._events.aclose()
        self._failed = self._failed or Cancelled("the call was cancelled")

    def __aiter__(self) -> AsyncIterator[ProgressT]:
        return self

    async def __anext__(self) -> ProgressT:
        try:
            event: Any = await anext(self._events)
            if self._is_result(event):
                self._result = event
                event = await anext(self._events)
        except DitserveError as failed:
            self._failed = failed
            raise
        return event  # type: ignore[no-any-return]

    async def result(self, *, bar: bool = False) -> ResultT:
        """Waits for the end. bar: shows a tqdm bar meanwhile. Errors: see Client."""
        with progress_bar(bar) as show:
            async for progress in self:
                show(progress)
        if self._result is None:
            raise self._failed or Internal("the stream ended without a result")
        return self._result


class _Session:
    """Channels to the servers, and how calls are made on them."""

    def __init__(self, servers: Servers, tls: Tls | bool, token: Token, retries: int) -> None:
        self._servers, self._tls, self._token, self._retries = servers, tls, token, retries
        self._channels: dict[str, Any] = {}
        self._closed = asyncio.Event()

    def _channel(self, address: str) -> Any:
        if self._closed.is_set():
            raise ValueError("the client is closed")
        # Made when it is used: it belongs to the event loop that runs then.
        if address not in self._channels:
            self._channels[address] = connect(grpc.aio, address, self._tls)
        return self._channels[address]

    async def close(self) -> None:
        self._closed.set()
        for channel in list(self._channels.values()):
            await channel.close()

    async def ask(self, call: Call[T], timeout: float | None) -> T:
        with self._ended_by_close():
            attempts = await self._attempts(timeout)
            while True:
                method = self._channel(attempts.next_address()).unary_unary(call.path)
                try:
                    answer = await method(call.request, timeout=attempts.seconds_left(), metadata=metadata(self._token))
                    return call.read(answer)
                except grpc.RpcError as failed:
                    wait = attempts.wait_after(error_of(failed))
                await self._wait(wait)

    async def stream(self, call: Call[T], timeout: float | None) -> AsyncGenerator[T, None]:
        with self._ended_by_close():
            attempts = await self._attempts(timeout)
            while True:
                method = self._channel(attempts.next_address()).unary_stream(call.path)
                sent = method(call.request, timeout=attempts.seconds_left(), metadata=metadata(self._token))
                try:
                    async for answer in sent:
                        yield call.read(answer)
                    return
                except grpc.RpcError as failed:
                    wait = attempts.wait_after(error_of(failed))
                finally:
                    sent.cancel()
                await self._wait(wait)

    async def _wait(self, seconds: float) -> None:
        """Errors: Cancelled, if it is closed meanwhile."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)
            raise Cancelled("the call was cancelled")

    @contextmanager
    def _ended_by_close(self) -> Iterator[None]:
        """A closed channel raises CancelledError in tasks that nobody cancelled: they get Cancelled."""
        try:
            yield
        except asyncio.CancelledError:
            # (Python before 3.11 does not tell whether the task was cancelled too.)
            cancelling = getattr(asyncio.current_task(), "cancelling", None)
            if not self._closed.is_set() or (cancelling is not None and cancelling()):
                raise
            raise Cancelled("the call was cancelled") from None

    async def _attempts(self, timeout: float | None) -> Attempts:
        attempts = Attempts(self._servers, self._retries, timeout)
        patience = attempts.patience()
        await asyncio.gather(*(self._ask_for_figures(one, patience) for one in self._servers.claim_asking()))
        return attempts

    async def _ask_for_figures(self, address: str, patience: float) -> None:
        call = _requests.residency()
        told: reports.Residency | None = None
        with suppress(grpc.RpcError, DitserveError):
            method = self._channel(address).unary_unary(call.path)
            told = call.read(await method(call.request, timeout=patience, metadata=metadata(self._token)))
        self._servers.tell(address, told)
