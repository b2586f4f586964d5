"""Statuses become exceptions with what their details tell, and calls are tried again where these say so."""

from __future__ import annotations

import asyncio
import inspect
import socket
import sys
import threading
import time
import types

import grpc
import pytest
from conftest import Inputs, details

import ditserve
from ditserve import _api, _connection, _requests, _servers, errors

INPUTS = Inputs()
FULL = details(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", RetryInfo={"retry_delay": {"nanos": 10_000_000}})
ANSWER = _api.v1("ForwardResponse")(
    output={"dtype": 1, "shape": [1, 4, 64], "data": bytes(1024)}, stats={"riders": 1}).SerializeToString()
PROGRESS = _api.v1("ForwardStreamResponse")(progress={"stage": 2}).SerializeToString()


@pytest.fixture(params=["unary", "stream", "async unary", "async stream"])
def forward(request, fake, loop):
    """A pass of each kind, waited for."""
    kind, options = request.param, {"retries": 2, "token": "secret"}
    if kind.startswith("async"):
        client = ditserve.AsyncClient(fake.address, **options)

        async def run(**given):
            if kind == "async unary":
                return await client.forward(*INPUTS.all, **given)
            return await client.forward_stream(*INPUTS.all, **given).result()

        yield lambda **given: loop.run_until_complete(run(**given))
        loop.run_until_complete(client.close())
        return
    with ditserve.Client(fake.address, **options) as client:
        if kind == "unary":
            yield lambda **given: client.forward(*INPUTS.all, **given)
        else:
            yield lambda **given: client.forward_stream(*INPUTS.all, **given).result()


def stream_of(answer: bytes) -> bytes:
    response = _api.v1("ForwardResponse").FromString(answer)
    return _api.v1("ForwardStreamResponse")(response=response).SerializeToString()


@pytest.fixture
def answer(forward, request):
    return stream_of(ANSWER) if "stream" in request.node.callspec.params["forward"] else ANSWER


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_each_status_has_its_exception(forward, fake, code):
    fake.answers = [details(code, "what is wrong")]
    with pytest.raises(errors.DitserveError) as raised:
        forward()
    known = {error.code: error for error in errors.DitserveError.__subclasses__()}
    assert type(raised.value) is known.get(code, errors.DitserveError)
    assert raised.value.message == "what is wrong"
    assert "what is wrong" in str(raised.value)
    assert len(fake.requests) == 1


def test_a_full_server_is_asked_again_when_it_says(forward, fake, answer):
    fake.answers = [FULL, FULL, answer]
    assert forward().stats.riders == 1
    assert len(fake.requests) == 3
    assert fake.requests[0] == fake.requests[2]


def test_it_is_not_asked_more_often_than_is_wanted(forward, fake):
    fake.answers = [FULL]
    with pytest.raises(errors.ResourceExhausted) as raised:
        forward()
    assert raised.value.retry_after == 0.01
    assert len(fake.requests) == 3


def test_nor_when_the_answer_would_come_too_late(forward, fake):
    fake.answers = [details(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", RetryInfo={"retry_delay": {"seconds": 3600}})]
    with pytest.raises(errors.ResourceExhausted):
        forward(timeout=60)
    assert len(fake.requests) == 1


def test_details_are_read_and_others_passed_over(forward, fake):
    quota = {"quota_dimensions": {"memory": "device", "needed_bytes": "30"}, "quota_value": 20}
    fake.answers = [details(
        grpc.StatusCode.FAILED_PRECONDITION, "never", QuotaFailure={"violations": [quota]},
        BadRequest={"field_violations": [{"field": "latents.shape"}]}, Status={"message": "of another kind"})]
    with pytest.raises(errors.FailedPrecondition) as raised:
        forward()
    assert raised.value.quota == errors.Quota("device", 30, 20)
    assert raised.value.field == "latents.shape"


@pytest.mark.parametrize("rich", [b"\xff\xff", details(
    grpc.StatusCode.INTERNAL, "", QuotaFailure={"violations": [{"quota_dimensions": {"needed_bytes": "many"}}]})[2]])
def test_details_that_can_not_be_read_leave_the_status(forward, fake, rich):
    fake.answers = [(grpc.StatusCode.INTERNAL, "broken", rich)]
    with pytest.raises(errors.Internal, match="broken") as raised:
        forward()
    assert raised.value.quota is None


@pytest.mark.parametrize("broken", [b"\x0a\xff", b"\x12\x01\xff", ANSWER[:-1] + b"\xff"])
def test_an_answer_that_can_not_be_read_is_an_error(forward, fake, broken):
    fake.answers = [broken]
    with pytest.raises(errors.Internal, match="can't be read"):
        forward()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_that_can_not_be_read_is_ended_while_its_error_is_held(fake, loop, kind):
    fake.answers = [[b"\x12\x01\xff", None]]
    with ditserve.Client(fake.address) as client:
        asynchronous = ditserve.AsyncClient(fake.address)
        with pytest.raises(errors.Internal) as held:
            if kind == "sync":
                client.forward_stream(*INPUTS.all).result()
            else:
                loop.run_until_complete(asynchronous.forward_stream(*INPUTS.all).result())
        assert fake.all_ended.wait(60)
        assert held.value.message
        loop.run_until_complete(asynchronous.close())


def test_a_deadline_that_has_passed_is_told(forward, fake):
    fake.answers = [None]
    with pytest.raises(TimeoutError):
        forward(timeout=0.05)


def test_a_stream_without_a_result_is_an_error(fake, loop):
    fake.answers = [[PROGRESS]]
    with ditserve.Client(fake.address) as client, pytest.raises(errors.Internal, match="ended without a result"):
        client.forward_stream(*INPUTS.all).result()

    async def run():
        async with ditserve.AsyncClient(fake.address) as client:
            await client.forward_stream(*INPUTS.all).result()

    with pytest.raises(errors.Internal, match="ended without a result"):
        loop.run_until_complete(run())


def test_the_token_goes_with_every_call(forward, fake, answer):
    fake.answers = [answer]
    forward()
    assert fake.metadata[0]["authorization"] == "Bearer secret"


def test_a_token_may_change_and_must_be_one(fake):
    fake.answers = [ANSWER]
    tokens = iter(["one", "two", "", "no token", "nö"])
    with ditserve.Client(fake.address, token=lambda: next(tokens)) as client:
        for _ in range(3):
            client.forward(*INPUTS.all)
        for _ in range(2):
            with pytest.raises(ValueError, match="token: expected printable ASCII"):
                client.forward(*INPUTS.all)
    assert [metadata.get("authorization") for metadata in fake.metadata] == ["Bearer one", "Bearer two", None]


def test_the_trace_context_of_the_current_span_goes_with_every_call(forward, fake, answer):
    from opentelemetry import context, trace

    span = trace.NonRecordingSpan(trace.SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=trace.TraceFlags(1)))
    fake.answers = [answer]
    attached = context.attach(trace.set_span_in_context(span))
    try:
        forward()
    finally:
        context.detach(attached)
    assert fake.metadata[0]["traceparent"] == f"00-{0xA1:032x}-{0xB2:016x}-01"


def test_of_traces_only_w3cs_context_goes_with_a_call(fake):
    from opentelemetry import baggage, context, propagate, trace

    class XRay:
        def inject(self, carrier, *_, **__):
            carrier["X-Amzn-Trace-Id"] = "Root=1"

    usual = propagate.get_global_textmap()
    propagate.set_global_textmap(XRay())
    span = trace.NonRecordingSpan(trace.SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=trace.TraceFlags(1)))
    fake.answers = [ANSWER]
    attached = context.attach(baggage.set_baggage("user", "me", trace.set_span_in_context(span)))
    try:
        with ditserve.Client(fake.address) as client:
            client.forward(*INPUTS.all)
    finally:
        propagate.set_global_textmap(usual)
        context.detach(attached)
    assert fake.metadata[0]["traceparent"] == f"00-{0xA1:032x}-{0xB2:016x}-01"
    assert not {"baggage", "x-amzn-trace-id"} & set(fake.metadata[0])


def test_a_process_that_has_no_more_of_opentelemetry_than_its_protocol_makes_calls(fake, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", types.ModuleType("opentelemetry"))
    fake.answers = [ANSWER]
    with ditserve.Client(fake.address) as client:
        client.forward(*INPUTS.all)


def test_of_several_servers_one_that_says_nothing_is_passed_over(fake):
    fake.answers = [ANSWER]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # It takes connections, and answers nothing.
        addresses = [f"127.0.0.1:{silent.getsockname()[1]}", fake.address]
        with ditserve.Client(addresses, balance="round_robin", timeout=12) as client:
            assert client.forward(*INPUTS.all).stats.riders == 1


def test_only_where_several_serve_must_they_be_quick(fake, loop, monkeypatch):
    limits, libraries = [], {grpc: grpc.insecure_channel, grpc.aio: grpc.aio.insecure_channel}
    for library, made in libraries.items():
        def noted(address, options, made=made):
            limits.append(dict(options).get("grpc.min_reconnect_backoff_ms"))
            return made(address, options=options)
        monkeypatch.setattr(library, "insecure_channel", noted)

    async def forward(*addresses: str) -> None:
        async with ditserve.AsyncClient(addresses, balance="round_robin") as client:
            await client.forward(*INPUTS.all)

    fake.answers = [ANSWER, ANSWER]
    ditserve.Client(fake.address).close()
    ditserve.Client([fake.address, "127.0.0.1:1"]).close()
    loop.run_until_complete(forward(fake.address))
    loop.run_until_complete(forward(fake.address, "127.0.0.1:1"))
    assert limits == [None, 5000, 5000, None, 5000]


def test_whom_a_machine_believes_is_in_the_first_file_that_it_has(tmp_path, monkeypatch):
    for name in ("told", "kept"):
        (tmp_path / name).write_text(name)
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setattr(_connection, "_AUTHORITIES", [f"{tmp_path}/other", f"{tmp_path}/kept"])
    monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/told")
    assert _connection._machine_authorities() == b"told"
    monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/none")
    assert _connection._machine_authorities() == b"kept"
    monkeypatch.setattr(_connection, "_AUTHORITIES", [])
    assert _connection._machine_authorities() is None
    monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/told")
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", f"{tmp_path}/grpcs")
    assert _connection._machine_authorities() is None


def test_a_private_key_is_not_shown():
    assert "secret" not in repr(ditserve.Tls(private_key=b"secret"))


def test_a_call_that_is_cancelled_says_so(fake):
    fake.answers = [None]
    with ditserve.Client(fake.address) as client:
        held = client.begin_forward(*INPUTS.all, at_once=False)
        assert not held.done()
        assert held.address == ""
        held.cancel()
        with pytest.raises(errors.Cancelled):
            held.result()
        assert fake.requests == []
        sent = client.begin_forward(*INPUTS.all)
        sent.cancel()
        with pytest.raises(errors.Cancelled):
            sent.result()
        run = client.forward_stream(*INPUTS.all)
        run.cancel()
        with pytest.raises(errors.Cancelled):
            run.result()
        with client.forward_stream(*INPUTS.all) as left:
            pass
        with pytest.raises(errors.Cancelled):
            next(left)


def test_nobody_waits_for_a_server_after_the_call_was_cancelled(fake):
    fake.answers = [details(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", RetryInfo={"retry_delay": {"seconds": 3600}})]
    with ditserve.Client(fake.address) as client:
        pending = client.begin_forward(*INPUTS.all)
        raised = []

        def wait():
            try:
                pending.result()
            except errors.DitserveError as error:
                raised.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        while not pending.done():
            time.sleep(0)
        pending.cancel()
        thread.join(60)
        assert raised == [errors.Cancelled]


def test_a_call_is_done_when_it_is_refused_and_sent_again_when_it_is_waited_for(fake):
    fake.answers = [FULL, ANSWER]
    with ditserve.Client(fake.address) as client:
        pending = client.begin_forward(*INPUTS.all, at_once=False)
        assert not pending.done()
        pending.send()
        while not pending.done():
            time.sleep(0)
        assert len(fake.requests) == 1
        assert pending.result().stats.riders == 1
        assert pending.done()
        assert len(fake.requests) == 2


def test_a_call_that_was_cancelled_before_it_was_sent_is_done(fake):
    with ditserve.Client(fake.address) as client:
        pending = client.begin_forward(*INPUTS.all, at_once=False)
        pending.cancel()
        assert pending.done()
        with pytest.raises(errors.Cancelled):
            pending.result()


LATER = details(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", RetryInfo={"retry_delay": {"seconds": 3600}})


def test_closing_a_client_ends_a_call_that_waits_to_be_sent_again(fake):
    fake.answers = [LATER]
    client = ditserve.Client(fake.address)
    pending = client.begin_forward(*INPUTS.all)
    raised = []

    def wait():
        try:
            pending.result()
        except BaseException as error:
            raised.append(type(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    while not pending.done():
        time.sleep(0)
    client.close()
    thread.join(60)
    assert raised == [errors.Cancelled]


def test_what_was_answered_before_the_client_was_closed_can_be_read_afterwards(fake):
    fake.answers = [ANSWER]
    client = ditserve.Client(fake.address)
    pending = client.begin_forward(*INPUTS.all)
    while not pending.done():
        time.sleep(0.01)
    client.close()
    assert pending.result().stats.riders == 1


@pytest.fixture
def waits(monkeypatch):
    """The seconds that calls wait to be sent again, as each has been told of."""
    waits, wait_after = [], _servers.Attempts.wait_after

    def noted(attempts, error):
        wait = wait_after(attempts, error)
        waits.append(wait)
        return wait

    monkeypatch.setattr(_servers.Attempts, "wait_after", noted)
    return waits


def test_closing_an_async_client_ends_calls_that_wait_to_be_sent_again(fake, loop, waits):
    fake.answers = [LATER]

    async def close() -> None:
        client = ditserve.AsyncClient(fake.address)
        run = client.forward_stream(*INPUTS.all)
        waiting = [asyncio.ensure_future(client.forward(*INPUTS.all)), asyncio.ensure_future(run.result())]
        while len(waits) < 2:
            await asyncio.sleep(0.01)
        await client.close()
        for one in waiting:
            with pytest.raises(errors.Cancelled):
                await asyncio.wait_for(one, 60)
        with pytest.raises(errors.Cancelled):
            await run.result()

    loop.run_until_complete(close())


def test_an_async_watch_is_left_as_the_other_is(server, loop):
    async def watch() -> None:
        async with ditserve.AsyncClient(server.address) as client, client.watch(0.1) as residencies:
            assert (await anext(residencies)).memories
            assert (await anext(residencies)).memories
        with pytest.raises(errors.Cancelled):
            await anext(residencies)

    loop.run_until_complete(watch())


@pytest.mark.parametrize("kind", ["watch", "run"])
@pytest.mark.parametrize("end", ["leave", "cancel"])
def test_an_async_stream_ends_for_the_task_that_reads_it(fake, loop, kind, end):
    fake.answers = [[b"" if kind == "watch" else PROGRESS, None]]
    reads = asyncio.Event()

    async def read(stream) -> None:
        async for _ in stream:
            reads.set()

    async def leave() -> None:
        async with ditserve.AsyncClient(fake.address) as client:
            async with client.watch() if kind == "watch" else client.forward_stream(*INPUTS.all) as stream:
                reading = asyncio.create_task(read(stream))
                await reads.wait()
                if end == "cancel":
                    stream.cancel()
                    await asyncio.wait({reading})
            for one in (reading, anext(stream)):
                with pytest.raises(errors.Cancelled):
                    await asyncio.wait_for(one, 60)
            assert await asyncio.to_thread(fake.all_ended.wait, 60)

    loop.run_until_complete(leave())


def test_an_async_stream_that_is_dropped_half_read_is_ended(fake, loop):
    fake.answers = [[b"", None]]

    async def drop() -> None:
        async with ditserve.AsyncClient(fake.address) as client:
            async for _ in client.watch():
                break
            assert await asyncio.to_thread(fake.all_ended.wait, 60)

    loop.run_until_complete(drop())


def test_an_async_stream_that_waits_to_be_sent_again_is_left(fake, loop, waits):
    fake.answers = [LATER]

    async def leave() -> None:
        async with ditserve.AsyncClient(fake.address) as client, client.forward_stream(*INPUTS.all) as run:
            reading = asyncio.create_task(run.result())
            while not waits:
                await asyncio.sleep(0.01)
            run.cancel()
            with pytest.raises(errors.Cancelled):
                await asyncio.wait_for(reading, 60)

    loop.run_until_complete(leave())


def test_an_async_run_that_nobody_waited_for_any_more_was_cancelled(fake, loop):
    fake.answers = [[PROGRESS, None]]

    async def give_up() -> None:
        async with ditserve.AsyncClient(fake.address) as client:
            run = client.forward_stream(*INPUTS.all)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(run.result(), 0.05)
            with pytest.raises(errors.Cancelled):
                await run.result()

    loop.run_until_complete(give_up())


BROKEN = details(grpc.StatusCode.INTERNAL, "broken")


@pytest.mark.parametrize(("token", "told"), [("secret", "broken"), ("no token", "token: expected")])
def test_who_waits_again_is_told_the_same_error(fake, loop, token, told):
    fake.answers = [BROKEN]
    with ditserve.Client(fake.address, token=lambda: token) as client:
        pending = client.begin_forward(*INPUTS.all, at_once=False)
        for _ in range(2):
            with pytest.raises((errors.Internal, ValueError), match=told):
                pending.result()

    async def wait_twice() -> None:
        async with ditserve.AsyncClient(fake.address, token=token) as client:
            run = client.forward_stream(*INPUTS.all)
            for _ in range(2):
                with pytest.raises((errors.Internal, ValueError), match=told):
                    await run.result()

    loop.run_until_complete(wait_twice())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_comes_after_a_result_decides_nothing(fakes, loop, kind):
    fakes[0].answers = [[stream_of(ANSWER), details(grpc.StatusCode.UNAVAILABLE, "gone")]]
    fakes[1].answers = [None]
    addresses = [fake.address for fake in fakes]

    async def run() -> ditserve.reports.Forward:
        async with ditserve.AsyncClient(addresses, balance="round_robin") as client:
            run = client.forward_stream(*INPUTS.all, timeout=20)
            assert await run.result() is await run.result()
            return await run.result()

    if kind == "async":
        answer = loop.run_until_complete(run())
    else:
        with ditserve.Client(addresses, balance="round_robin") as client:
            answer = client.forward_stream(*INPUTS.all, timeout=20).result()
    assert answer.output.shape == (1, 4, 64)
    assert fakes[1].requests == []


def test_an_async_call_holds_what_its_arrays_held_when_it_was_made(fake, loop):
    fake.answers = [ANSWER]
    latents, timestep, prompt = (array.copy() for array in INPUTS.all)

    async def forward() -> None:
        async with ditserve.AsyncClient(fake.address) as client:
            with pytest.raises(TypeError, match="latents: expected"):
                client.forward([1], 0.5, prompt)
            call = client.forward(latents, timestep, prompt)
            latents[:] = 0
            await call

    loop.run_until_complete(forward())
    assert fake.requests == [_requests.forward(*INPUTS.all, None).request]


@pytest.mark.parametrize("name", ["__init__", *(
    name for name in vars(ditserve.AsyncClient) if not name.startswith("_") and name != "close")])
def test_both_clients_take_the_same(name):
    one, other = (inspect.signature(getattr(cls, name)) for cls in (ditserve.Client, ditserve.AsyncClient))
    assert one.parameters == other.parameters  # Annotations are strings: so types, too.


def test_a_timeout_includes_asking_for_figures(fakes, loop):
    for fake in fakes:
        fake.answers = [None]
    addresses = [fake.address for fake in fakes]
    with ditserve.Client(addresses) as client, pytest.raises(TimeoutError):
        client.forward(*INPUTS.all, timeout=0.5)

    async def forward():
        async with ditserve.AsyncClient(addresses) as client:
            await client.forward(*INPUTS.all, timeout=0.5)

    with pytest.raises(TimeoutError):
        loop.run_until_complete(forward())
    told = [seconds for fake in fakes for seconds in fake.seconds_left]
    assert told
    assert max(told) <= 0.5  # As the servers were told.


def test_a_call_beside_another_asks_nobody_for_figures(fakes):
    fakes[1].answers = [ANSWER]
    with ditserve.Client([fake.address for fake in fakes]) as client:
        pending = client.begin_forward(*INPUTS.all, at_once=False).send(beside=fakes[1].address)
        assert pending.result().stats.riders == 1
    assert [len(fake.requests) for fake in fakes] == [0, 1]


class Gate:
    """A token that is given once the gate is open; so a call can be held while it is sent."""

    def __init__(self):
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.open.wait(60)
        return "secret"


def test_a_call_that_is_cancelled_while_it_is_sent_ends(fake):
    fake.answers = [None]
    gate, raised = Gate(), []

    def wait():
        try:
            pending.result()
        except errors.DitserveError as error:
            raised.append(type(error))

    with ditserve.Client(fake.address, token=gate) as client:
        pending = client.begin_forward(*INPUTS.all, at_once=False)
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        assert gate.entered.wait(60)
        pending.cancel()
        gate.open.set()
        thread.join(60)
        assert raised == [errors.Cancelled]
        assert not fake.requests or fake.all_ended.wait(60)


def test_what_was_cancelled_is_not_sent(fake):
    fake.answers = [None]
    with ditserve.Client(fake.address) as client:
        pending = client.begin_forward(*INPUTS.all, at_once=False)
        pending.cancel()
        assert pending.send() is pending
        assert pending.address == ""
        with pytest.raises(errors.Cancelled):
            pending.result()


def test_closing_an_asynchronous_client_ends_its_calls_with_an_error(fake, loop):
    fake.answers = [None]

    async def close():
        client = ditserve.AsyncClient(fake.address)
        calls = [asyncio.ensure_future(one) for one in (
            client.forward(*INPUTS.all), client.forward_stream(*INPUTS.all).result())]
        while len(fake.requests) < 2:
            await asyncio.sleep(0)
        await client.close()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in ended] == [errors.Cancelled] * 2
        for call in (client.forward(*INPUTS.all), client.forward_stream(*INPUTS.all).result()):
            with pytest.raises(ValueError, match="closed"):
                await call

    loop.run_until_complete(close())


def test_who_is_cancelled_while_a_client_closes_is_cancelled(fake, loop):
    fake.answers = [None]

    async def cancel():
        client = ditserve.AsyncClient(fake.address)
        call = asyncio.ensure_future(client.forward(*INPUTS.all))
        while not fake.requests:
            await asyncio.sleep(0)
        call.cancel()
        await client.close()
        # Python before 3.11 does not tell that the task was cancelled too.
        told = asyncio.CancelledError if sys.version_info >= (3, 11) else (asyncio.CancelledError, errors.Cancelled)
        with pytest.raises(told):
            await call

    loop.run_until_complete(cancel())


def test_what_is_called_of_a_closed_client_is_refused(fake):
    client = ditserve.Client(fake.address)
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.forward(*INPUTS.all)
