"""Servers for tests: a real one of a narrow block, and a fake one that answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from programs import Server, tiny_checkpoint

import ditserve
from ditserve import _api

PROMPT = 3584


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration: what is long is so on machines of many cores too."""
    config = tmp_path_factory.mktemp("c") / "config.yaml"
    config.write_text("device: {threads: 1}\n")
    return config


@pytest.fixture
def serve(checkpoint: Path, one_thread: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts a server of the narrow block, with these flags; a configuration of their own replaces `one_thread`."""
    with contextlib.ExitStack() as servers:
        # A socket's path has at most 107 bytes.
        yield lambda *flags, numerics="diffsynth": servers.enter_context(
            Server(tmp_path_factory.mktemp("s"), "--model", f"tiny={checkpoint},numerics={numerics}",
                   "--config", one_thread, *flags))


@pytest.fixture(scope="session")
def server(checkpoint: Path, one_thread: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that leave it as it was."""
    with Server(tmp_path_factory.mktemp("s"), "--model", f"tiny={checkpoint}", "--config", one_thread) as server:
        yield server


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One for all: grpc.aio stays with the first it meets."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def client(server: Server) -> Iterator[ditserve.Client]:
    with ditserve.Client(server.address) as client:
        yield client


class Inputs:
    """Of a forward pass; `numpy.random` with a seed."""

    def __init__(self, side: int = 32, batch: int = 1, tokens: int = 3, dtype: Any = np.float32):
        random = np.random.default_rng(5)
        self.latents = random.standard_normal((batch, 16, side // 8, side // 8), dtype=np.float32).astype(dtype)
        self.timestep = np.full(batch, 0.5, dtype)
        self.prompt_emb = random.standard_normal((batch, tokens, PROMPT), dtype=np.float32).astype(dtype)

    @property
    def all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.latents, self.timestep, self.prompt_emb


PATIENCE_SECONDS = 300  # Only what hangs takes that long.
LONG = Inputs(side=3072)  # Of seconds, on one thread.
MINUTES = {"height": 2048, "width": 2048, "seeds": 1, "steps": 1000}  # Of a loop that no test waits for.


def await_residency(address: str, condition: Callable[[ditserve.reports.Residency], bool],
                    patience_seconds: float = PATIENCE_SECONDS) -> None:
    last = None
    with ditserve.Client(address) as client, client.watch(0.1) as residencies:
        patience = threading.Timer(patience_seconds, residencies.cancel)
        patience.start()
        try:
            for last in residencies:
                if condition(last):
                    return
        except ditserve.errors.Cancelled:
            raise TimeoutError(f"waited for {patience_seconds} s in vain; the last residency: {last}") from None
        finally:
            patience.cancel()
    raise AssertionError(f"the server told no more; the last residency: {last}")


def idle(residency: ditserve.reports.Residency) -> bool:
    return not residency.riders and residency.requests_waiting == 0


def busy(residency: ditserve.reports.Residency) -> bool:
    return bool(residency.riders)


def details(code: grpc.StatusCode, message: str, **given: dict[str, Any]) -> tuple[grpc.StatusCode, str, bytes]:
    """A status with details of google.rpc: details(code, message, RetryInfo={...})."""
    rich = _api.message("google.rpc.Status")(message=message)
    for name, fields in given.items():
        detail = _api.message(f"google.rpc.{name}")(**fields)
        rich.details.add(type_url=f"type.googleapis.com/google.rpc.{name}", value=detail.SerializeToString())
    return code, message, rich.SerializeToString()


class FakeServer:
    """Answers calls of any method with what stands next in `answers`, and with the last of it again and again.

    An answer is bytes, or a status with details, or a list of these, one after the other, or None: it does not come.
    """

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[bytes] = []
        self.metadata: list[dict[str, Any]] = []
        self.seconds_left: list[float] = []
        self.all_ended = threading.Event()
        self._stopped = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.metadata.append(dict(call.invocation_metadata))
        return grpc.unary_stream_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.requests.append(request)
        self.seconds_left.append(context.time_remaining())
        self.all_ended.clear()
        if not context.add_callback(self.all_ended.set):  # It has ended already.
            self.all_ended.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        for one in answer if isinstance(answer, list) else [answer]:
            if isinstance(one, bytes):
                yield one
                continue
            if one is None:
                self._stopped.wait()
                return
            code, message, rich = one
            context.set_trailing_metadata((("grpc-status-details-bin", rich),))
            context.abort(code, message)

    def stop(self) -> None:
        self._stopped.set()
        self._server.stop(None).wait()


@pytest.fixture
def fakes() -> Iterator[list[FakeServer]]:
    servers = [FakeServer(), FakeServer()]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def fake(fakes: list[FakeServer]) -> FakeServer:
    return fakes[0]
