"""What KServe's own client gets of a server. In a process of its own: it and Triton's client name their messages alike.

usage: kserve_sdk.py ADDRESS FOLDER    reads latents, timestep and prompt_emb.npy of FOLDER, writes what it was answered there
"""

import asyncio
import sys
from pathlib import Path

import numpy
from kserve import InferenceGRPCClient, InferInput, InferRequest

ADDRESS, FOLDER = sys.argv[1], Path(sys.argv[2])


def request(binary: bool) -> InferRequest:
    inputs = []
    for name in ("latents", "timestep", "prompt_emb"):
        array = numpy.load(FOLDER / f"{name}.npy")
        tensor = InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return InferRequest(model_name="tiny", infer_inputs=inputs, parameters={"profile": "disk"})


async def main() -> None:
    client = InferenceGRPCClient(ADDRESS)
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("tiny")
    for i, answer in enumerate(await asyncio.gather(*[client.infer(request(binary)) for binary in (True, False, True)])):
        numpy.save(FOLDER / f"kserve-{i}.npy", answer.outputs[0].as_numpy())
    await client.close()


asyncio.run(main())
