"""Clients of a ditserve, each with a connection of its own, that ask again and again until a line comes on standard input.

usage: clients.py ADDRESS DESCRIPTORS MIX
MIX is a JSON object with what `Mix` has. Writes a line of JSON for each call that has ended, and for each update that a
watcher of residency was sent.
"""

import json
import os
import random
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FORWARD = "/ditserve.v1.TransformerService/Forward"
STREAM = "/ditserve.v1.TransformerService/ForwardStream"
WATCH = "/ditserve.v1.ResidencyService/WatchResidency"
FLOAT32 = 1
ALONE = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1),
         ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
NARROW = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
HANGS_SECONDS = 300  # A call that takes so long is one that hangs.
AGAIN_SECONDS = 0.05  # After an error that says nothing of when.


@dataclass
class Mix:
    """`slow`, `cancelled` and `late` clients are some of the clients; watchers come on top."""

    clients: int
    slow: int = 0  # Read through a window of 1 KiB, and wait before each message.
    cancelled: int = 0  # Leave at a random moment.
    late: int = 0  # Have a deadline that few meet.
    watchers: int = 0  # Of residency.
    pixels: tuple[int, ...] = (64,)
    profiles: tuple[str, ...] = ("disk",)
    priorities: tuple[int, ...] = (1,)
    pause_seconds: float = 0.2  # Of the slow, before each message.
    soon_seconds: float = 0.5  # Until a cancellation or a deadline, at most.
    interval_seconds: float = 0.5  # Of watchers.
    ca: str | None = None


class Messages:
    """The API's, from the descriptors that protoc wrote."""

    def __init__(self, descriptors: Path):
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes()).file:
            pool.Add(file)
        self._pool = pool

    def __getitem__(self, name: str) -> Any:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"ditserve.v1.{name}"))

    def forward(self, pixels: int, profile: str, priority: int) -> Any:
        request = self["ForwardRequest"](height=pixels, width=pixels, profile=profile, priority=priority)
        for name, shape in (("latents", (1, 16, pixels // 8, pixels // 8)), ("timestep", (1,)), ("prompt_emb", (1, 3, 3584))):
            tensor = getattr(request, name)
            tensor.dtype = FLOAT32
            tensor.shape.extend(shape)
            tensor.data = bytes(4 * prod(shape))
        return request


def seconds(duration: Any) -> float:
    return duration.seconds + duration.nanos / 1e9


def pause_after(error: grpc.RpcError) -> float:
    """What the server asked for, or a little."""
    told = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
    return int(told) / 1000 if told else AGAIN_SECONDS


class Clients:
    def __init__(self, address: str, messages: Messages, mix: Mix):
        self.address = address
        self.messages = messages
        self.mix = mix
        self.stop = threading.Event()
        self._mutex = threading.Lock()
        self._requests = {(pixels, profile, priority): messages.forward(pixels, profile, priority).SerializeToString()
                          for pixels in mix.pixels for profile in mix.profiles for priority in mix.priorities}

    def run(self) -> None:
        special = {"slow": self.mix.slow, "cancelled": self.mix.cancelled, "late": self.mix.late}
        kinds = [kind for kind, count in special.items() for _ in range(count)]
        kinds += ["plain"] * (self.mix.clients - len(kinds)) + ["watcher"] * self.mix.watchers
        threads = [threading.Thread(target=self._ask, args=(kind, random.Random(seed))) for seed, kind in enumerate(kinds)]
        for thread in threads:
            thread.start()
        sys.stdin.readline()
        self.stop.set()
        for thread in threads:
            thread.join()

    def _say(self, **what: object) -> None:
        line = json.dumps(what)
        with self._mutex:
            print(line, flush=True)

    def _channel(self, kind: str) -> grpc.Channel:
        options = ALONE + (NARROW if kind == "slow" else [])
        if self.mix.ca is None:
            return grpc.insecure_channel(self.address, options)
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(Path(self.mix.ca).read_bytes()), options)

    def _ask(self, kind: str, rng: random.Random) -> None:
        with self._channel(kind) as channel:
            call = self._watch(channel) if kind == "watcher" else self._forward(channel, kind, rng)
            while not self.stop.is_set():
                begun, more, pause = time.monotonic(), {}, 0.0
                try:
                    more, code, details = call(), "OK", ""
                except grpc.RpcError as error:
                    code, details, pause = error.code().name, error.details(), pause_after(error)
                self._say(kind=kind, begun=begun, ended=time.monotonic(), code=code, details=details, **more)
                self.stop.wait(pause)

    def _forward(self, channel: grpc.Channel, kind: str, rng: random.Random) -> Callable[[], dict]:
        decode, decode_event = self.messages["ForwardResponse"].FromString, self.messages["ForwardStreamResponse"].FromString
        unary = channel.unary_unary(FORWARD, None, decode)
        stream = channel.unary_stream(STREAM, lambda request: b"\n" + varint(len(request)) + request, decode_event)

        def call() -> dict:
            what = rng.choice(list(self._requests))
            request, soon = self._requests[what], rng.uniform(0, self.mix.soon_seconds)
            if kind == "slow":
                response = self._read_slowly(stream(request, timeout=HANGS_SECONDS))
            elif kind == "cancelled":
                under_way = unary.future(request, timeout=HANGS_SECONDS)
                try:
                    response = under_way.result(soon)
                except grpc.FutureTimeoutError:
                    under_way.cancel()
                    response = unless_cancelled(under_way)
            else:
                response = unary(request, timeout=soon if kind == "late" else HANGS_SECONDS)
            return {"queue": seconds(response.stats.queue), "pixels": what[0], "profile": what[1],
                    "checksum": zlib.crc32(response.output.data)}

        return call

    def _read_slowly(self, stream: Any) -> Any:
        response = None
        time.sleep(self.mix.pause_seconds)
        for event in stream:
            response = event.response
            time.sleep(self.mix.pause_seconds)
        return response

    def _watch(self, channel: grpc.Channel) -> Callable[[], dict]:
        request = self.messages["WatchResidencyRequest"](interval=timedelta(seconds=self.mix.interval_seconds))
        watch = channel.unary_stream(WATCH, None, self.messages["WatchResidencyResponse"].FromString)

        def call() -> dict:
            stream = watch(request.SerializeToString())
            for update in stream:
                self._say(kind="update", watcher=threading.get_ident(), time=seconds(update.time))
                if self.stop.is_set():
                    stream.cancel()
            return {}

        return call


class Cancelled(grpc.RpcError):
    """As gRPC tells of a call that its client has left, which it does by another kind of error."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return "by this client"

    def trailing_metadata(self) -> None:
        return None


def unless_cancelled(call: Any) -> Any:
    """What it was answered in the end."""
    try:
        return call.result(HANGS_SECONDS)
    except grpc.FutureCancelledError as error:
        raise Cancelled from error


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded + bytes([value]))


def fail(thread: threading.ExceptHookArgs) -> None:
    """A client that fails fails all."""
    sys.__excepthook__(thread.exc_type, thread.exc_value, thread.exc_traceback)
    os._exit(1)


if __name__ == "__main__":
    threading.excepthook = fail
    Clients(sys.argv[1], Messages(Path(sys.argv[2])), Mix(**json.loads(sys.argv[3]))).run()
