"""What goes wrong between a client and its server ends with the right exception, and nothing goes on at the server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LONG, MINUTES, Inputs, await_residency, busy, idle
from programs import Server

import ditserve
from ditserve import errors


class SlowNetwork:
    """Hands bytes on between clients and a server, in pieces of 16 KiB of which each takes `delay` seconds more."""

    def __init__(self, path: Path, target: str, delay: float):
        self.address, self._path, self._target, self._delay = f"unix:{path}", path, target.removeprefix("unix:"), delay
        self.pieces = 0
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])

    def __enter__(self) -> SlowNetwork:
        self._thread.start()
        assert self._listening.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_unix_server(self._connect, self._path)
        self._listening.set()
        await self._stopped.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_unix_connection(self._target)
        await asyncio.gather(self._hand_on(reader, target_writer), self._hand_on(target_reader, writer))

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 14):
                self.pieces += 1
                await asyncio.sleep(self._delay)
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
def slow(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowNetwork]:
    with SlowNetwork(tmp_path_factory.mktemp("n") / "socket", server.address, 0.002) as network:
        yield network


def test_over_a_slow_network_all_arrives(slow, client):
    inputs = Inputs(tokens=100)  # 1.4 MB.
    with ditserve.Client(slow.address) as far:
        assert (far.forward(*inputs.all).output == client.forward(*inputs.all).output).all()
    assert slow.pieces > inputs.prompt_emb.nbytes >> 14


def test_over_a_slow_network_a_deadline_holds(slow, server):
    log = Path(server.log.name)
    before, codes = len(log.read_bytes()), []
    with ditserve.Client(slow.address) as far:
        for timeout in (0.5 * 2**turn for turn in itertools.count()):  # Until the request has come to the server in time.
            with pytest.raises(TimeoutError):
                far.denoise(LONG.prompt_emb, **MINUTES, timeout=timeout).result()
            await_residency(server.address, idle)
            codes = re.findall(r'rpc="Denoise" code="(\w+)"', log.read_bytes()[before:].decode())
            if codes:
                break
    assert set(codes) <= {"DEADLINE_EXCEEDED", "CANCELLED"}  # Not what a loop of minutes gives at its end.


def test_a_killed_server_is_an_error_at_once(serve, loop):
    server = serve()

    async def forward() -> None:
        async with ditserve.AsyncClient(server.address) as client:
            await client.forward(*LONG.all)

    with ditserve.Client(server.address) as client:
        passes = [client.begin_forward(*LONG.all), client.forward_stream(*LONG.all)]
        asynchronous = loop.create_task(forward())
        loop.run_until_complete(asyncio.to_thread(await_residency, server.address, lambda one: len(one.riders) == 3))
        server.process.kill()
        for one in passes:
            with pytest.raises(ConnectionError):
                one.result()
        with pytest.raises(errors.Unavailable):
            loop.run_until_complete(asynchronous)
        with pytest.raises(errors.Unavailable):
            client.models()


@pytest.mark.parametrize("balance", ["round_robin", "least_waiting"])
def test_a_server_that_is_killed_in_mid_load_is_made_up_for_by_the_others(serve, loop, balance):
    servers = [serve(), serve()]
    inputs = Inputs(side=256)

    async def load() -> list[ditserve.reports.Forward]:
        async with ditserve.AsyncClient([one.address for one in servers], balance=balance) as client:
            calls = [asyncio.create_task(client.forward(*inputs.all)) for _ in range(40)]
            _, rest = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert rest
            servers[0].process.kill()
            return await asyncio.gather(*calls)

    answers = loop.run_until_complete(load())
    assert len({answer.output.tobytes() for answer in answers}) == 1
    with ditserve.Client([one.address for one in servers]) as client:  # By figures, of which one server tells none.
        for _ in range(4):
            assert client.begin_forward(*inputs.all).address == servers[1].address
    servers[1].process.kill()
    with ditserve.Client([one.address for one in servers]) as client, pytest.raises(errors.Unavailable):
        client.forward(*inputs.all)


def test_calls_go_where_the_least_is_to_be_done(serve, loop, monkeypatch):
    # However busy this machine is, the servers tell their figures.
    monkeypatch.setattr("ditserve._servers.FIGURES_SECONDS", 60)
    servers = [serve(), serve()]
    addresses = [one.address for one in servers]
    with ditserve.Client(addresses[0]) as client:
        long = client.denoise(LONG.prompt_emb, **MINUTES)
        await_residency(addresses[0], busy)
        with ditserve.Client(addresses) as both:
            short = both.begin_forward(*Inputs().all)
            assert short.address == addresses[1]
            short.result()

        async def forward() -> str:
            async with ditserve.AsyncClient(addresses) as both:
                return (await both.forward(*Inputs().all, join="immediate")).stats.riders

        assert loop.run_until_complete(forward()) == 1  # Not beside the long one.
        long.cancel()


def test_a_token_that_is_no_longer_the_servers_is_told_and_a_new_one_taken(serve, tmp_path):
    def allow(token: str) -> None:
        (tmp_path / "new.yaml").write_text(f"tokens: [{{name: me, token: {token}, scopes: [infer, read]}}]\n")
        os.replace(tmp_path / "new.yaml", tmp_path / "tokens.yaml")

    allow("0123456789abcdef")
    (tmp_path / "config.yaml").write_text(f"access: {{tokens: {tmp_path}/tokens.yaml}}\n")
    server = serve("--config", str(tmp_path / "config.yaml"))
    current = "0123456789abcdef"
    with ditserve.Client(server.address, token="0123456789abcdef") as client, ditserve.Client(
            server.address, token=lambda: current) as renewing:
        client.forward(*Inputs().all)
        renewing.forward(*Inputs().all)
        allow("fedcba9876543210")
        with pytest.raises(errors.Unauthenticated):
            for _ in itertools.count():  # Until the server has read the file.
                client.forward(*Inputs().all)
        with pytest.raises(errors.Unauthenticated):
            renewing.forward(*Inputs().all)
        current = "fedcba9876543210"
        renewing.forward(*Inputs().all)


def test_a_scope_that_the_token_lacks_is_told(serve, tmp_path):
    (tmp_path / "tokens.yaml").write_text("tokens: [{name: me, token: 0123456789abcdef, scopes: [read]}]\n")
    (tmp_path / "config.yaml").write_text(f"access: {{tokens: {tmp_path}/tokens.yaml}}\n")
    server = serve("--config", str(tmp_path / "config.yaml"))
    with ditserve.Client(server.address, token="0123456789abcdef") as client:
        assert client.models()
        with pytest.raises(PermissionError, match="PERMISSION_DENIED"):
            client.forward(*Inputs().all)


def test_under_tls_only_whom_the_client_believes_is_spoken_to(serve, tmp_path, monkeypatch):
    sys.path.insert(0, str(Path(__file__).parents[1] / "system"))
    from gate_test import certificates

    certificates(tmp_path)
    (tmp_path / "config.yaml").write_text(
        f"tls: {{certificate: {tmp_path}/server.pem, private_key: {tmp_path}/server.key, client_ca: {tmp_path}/ca.pem}}\n")
    server = serve("--config", str(tmp_path / "config.yaml"), "--listen", "127.0.0.1:0")
    address = server.greeting.split()[-1]
    pem = {name: (tmp_path / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key")}
    with ditserve.Client(address, tls=ditserve.Tls(pem["ca.pem"], pem["server.pem"], pem["server.key"])) as client:
        assert client.forward(*Inputs().all).stats.riders == 1
    for tls in (True, ditserve.Tls(pem["ca.pem"]), False):  # A stranger to it; one who shows no certificate; plain text.
        with ditserve.Client(address, tls=tls) as client, pytest.raises(errors.Unavailable):
            client.models()
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/ca.pem")  # As if the machine believed it.
    own = ditserve.Tls(certificate=pem["server.pem"], private_key=pem["server.key"])
    with ditserve.Client(address, tls=own) as client:
        assert client.models()


def test_of_a_thousand_calls_at_once_each_ends(server, loop):
    async def forward_all() -> list[object]:
        async with ditserve.AsyncClient(server.address, retries=20) as client:
            calls = [client.forward(*Inputs(side=16, tokens=1).all) for _ in range(1000)]
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = loop.run_until_complete(forward_all())
    passes = [answer for answer in answers if isinstance(answer, ditserve.reports.Forward)]
    refused = [answer for answer in answers if isinstance(answer, errors.ResourceExhausted)]
    assert len(passes) + len(refused) == 1000
    assert len(passes) > 80  # Whom the server let in at once.
    await_residency(server.address, idle)


def test_who_cancels_a_task_cancels_its_call(server, loop):
    async def cancel_all() -> None:
        async with ditserve.AsyncClient(server.address) as client:
            async def watch() -> None:
                async for _ in client.watch(0.1):
                    pass

            tasks = [asyncio.create_task(one) for one in (
                client.forward(*LONG.all), client.forward_stream(*LONG.all).result(), watch())]
            await asyncio.to_thread(await_residency, server.address, lambda one: len(one.riders) == 2)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(one) for one in ended] == [asyncio.CancelledError] * 3
            await asyncio.to_thread(await_residency, server.address, idle)

    loop.run_until_complete(cancel_all())


@pytest.mark.parametrize("begin", [
    lambda client: client.forward_stream(*LONG.all),
    lambda client: client.denoise(LONG.prompt_emb, **MINUTES),
], ids=["forward_stream", "denoise"])
def test_who_leaves_a_run_ends_it(client, server, loop, begin):
    with begin(client) as run:
        next(run)
        await_residency(server.address, busy)
    await_residency(server.address, idle)

    async def leave() -> None:
        async with ditserve.AsyncClient(server.address) as asynchronous:
            async with begin(asynchronous) as run:
                await anext(run)
                await asyncio.to_thread(await_residency, server.address, busy)
            await asyncio.to_thread(await_residency, server.address, idle)

    loop.run_until_complete(leave())


@pytest.mark.parametrize("call", [
    "client.forward(*LONG.all)",
    "client.forward_stream(*LONG.all).result()",
    "client.denoise(LONG.prompt_emb, **MINUTES).result(bar=True)",
    "for _ in client.watch(): print('watches', flush=True)",
    "asyncio.run(ditserve.AsyncClient(client_address).forward(*LONG.all))",
])
def test_ctrl_c_ends_the_call_at_the_server_too(server, call):
    program = f"import asyncio, ditserve\nfrom conftest import LONG, MINUTES\nclient_address = {server.address!r}\n" \
              f"client = ditserve.Client(client_address)\nprint('ready', flush=True)\n{call}\n"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ['PYTHONPATH']}"}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    if "watch" in call:
        assert process.stdout.readline() == "watches\n"
    else:
        await_residency(server.address, busy)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in told
    await_residency(server.address, idle)


def test_a_run_whose_bar_can_not_be_shown_is_ended(client, server, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    run = client.denoise(LONG.prompt_emb, **MINUTES)
    await_residency(server.address, busy)
    with pytest.raises(ImportError, match=r"a bar needs tqdm: pip install ditserve\[progress\]"):
        run.result(bar=True)
    await_residency(server.address, idle)
    with pytest.raises(errors.Cancelled):
        run.result()


def test_an_interrupt_in_a_bar_ends_the_run(client, server, loop, monkeypatch):
    class Bar(contextlib.nullcontext):
        """tqdm's, in which Ctrl-C comes."""

        def __init__(self, unit: str):
            super().__init__(self)

        def set_description(self, *_: object, **__: object) -> None:
            await_residency(server.address, busy)
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    run = client.denoise(LONG.prompt_emb, **MINUTES)
    with pytest.raises(KeyboardInterrupt):
        run.result(bar=True)
    await_residency(server.address, idle)

    async def show() -> None:
        async with ditserve.AsyncClient(server.address) as asynchronous:
            other = asynchronous.denoise(LONG.prompt_emb, **MINUTES)
            with pytest.raises(KeyboardInterrupt):
                await other.result(bar=True)
            await asyncio.to_thread(await_residency, server.address, idle)
            with pytest.raises(errors.Cancelled):
                await other.result()

    loop.run_until_complete(show())
    with pytest.raises(errors.Cancelled):
        run.result()


@pytest.mark.parametrize("method", ["begin_forward", "forward_stream"])
def test_an_interrupt_ends_a_call_that_is_still_held(client, server, method):
    def interrupt() -> None:
        await_residency(server.address, busy)
        signal.raise_signal(signal.SIGINT)

    call = getattr(client, method)(*LONG.all)
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        call.result()
    interrupting.join()
    await_residency(server.address, idle)
    with pytest.raises(errors.Cancelled):
        call.result()


def test_who_drops_a_call_ends_it(client, server):
    pending = client.begin_forward(*LONG.all)
    await_residency(server.address, busy)
    del pending
    await_residency(server.address, idle)


def test_closing_a_client_ends_its_calls(server):
    client = ditserve.Client(server.address)
    pending = client.begin_forward(*LONG.all)
    await_residency(server.address, busy)
    client.close()
    with pytest.raises(errors.Cancelled):
        pending.result()
    await_residency(server.address, idle)
