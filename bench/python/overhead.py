"""What the Python client adds to a pass: wall time at the client less the server's own, over TCP to 127.0.0.1.

usage: PYTHONPATH=client/python/src:tests/system python bench/python/overhead.py    DITSERVE_BIN, TINY_CHECKPOINT: as for tests

At 1024x1024, in bfloat16, of a model of one narrow block: messages are those of the 20 B model. 40 passes with each client and
number of prompt tokens, in turns, and with grpcio alone, which is handed a message that is ready. Prints medians with the
least and the most, in ms.
"""

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import ml_dtypes
import numpy as np
from programs import Server, tiny_checkpoint

import ditserve
from ditserve import _requests

PASSES = 40
INPUTS = {tokens: (np.zeros((1, 16, 128, 128), ml_dtypes.bfloat16), 0.5, np.zeros((1, tokens, 3584), ml_dtypes.bfloat16))
          for tokens in (20, 512)}


@contextmanager
def timed(overheads: list[float]) -> Iterator[list[ditserve.reports.Forward]]:
    """Notes the time within, less the server's for the answer that is appended to what it gives."""
    answers, begun = [], time.perf_counter()
    yield answers
    overheads.append(time.perf_counter() - begun - answers[0].stats.total)


async def measure(address: str) -> dict[tuple[str, int], list[float]]:
    """Seconds of each pass, by client and tokens."""
    overheads = defaultdict(list)
    with grpc.insecure_channel(address) as channel, ditserve.Client(address) as client:
        async with ditserve.AsyncClient(address) as asynchronous:
            for _ in range(PASSES):
                for tokens, inputs in INPUTS.items():
                    with timed(overheads["Client", tokens]) as answers:
                        answers.append(client.forward(*inputs))
                    with timed(overheads["AsyncClient", tokens]) as answers:
                        answers.append(await asynchronous.forward(*inputs))
                    call = _requests.forward(*inputs, None)
                    with timed(overheads["grpcio alone", tokens]) as answers:
                        answer = channel.unary_unary(call.path)(call.request)
                        answers.append(call.read(answer))
    return overheads


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    model = f"tiny={tiny_checkpoint(folder / 'tiny')}"
    with Server(folder, "--model", model, "--listen", "127.0.0.1:0") as server:
        for (client, tokens), overheads in asyncio.run(measure(server.greeting.split()[-1])).items():
            ordered = [1000 * seconds for seconds in sorted(overheads)]
            print(f"{client:12} {tokens:4} tokens  {statistics.median(ordered):5.1f} ({ordered[0]:.1f} to {ordered[-1]:.1f}) ms")
