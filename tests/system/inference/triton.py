"""What an unmodified tritonclient gets of a server.

usage: triton.py ADDRESS FOLDER    reads latents, timestep and prompt_emb.npy of FOLDER, writes what it was answered there
"""

import asyncio
import sys
from pathlib import Path

import ml_dtypes
import numpy
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

ADDRESS, FOLDER = sys.argv[1], Path(sys.argv[2])
INPUTS = {name: numpy.load(FOLDER / f"{name}.npy") for name in ("latents", "timestep", "prompt_emb")}
PARAMETERS = {"profile": "disk", "vram_limit_gib": 0.5, "join": "wait"}
KINDS = {"FP32": numpy.float32, "FP16": numpy.float16, "BF16": ml_dtypes.bfloat16}


def inputs(datatype: str) -> list:
    made = []
    for name, array in INPUTS.items():
        tensor = tritonclient.grpc.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array.astype(KINDS[datatype]))
        made.append(tensor)
    return made


def refusal(client, **arguments) -> InferenceServerException:
    try:
        client.infer("tiny", inputs("FP32"), **arguments)
    except InferenceServerException as error:
        return error
    raise AssertionError(f"{arguments} were not refused")


def sync() -> None:
    client = tritonclient.grpc.InferenceServerClient(ADDRESS)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
    assert client.get_server_metadata().name == "ditserve"
    metadata = client.get_model_metadata("tiny")
    assert [tensor.name for tensor in metadata.inputs] == ["latents", "timestep", "prompt_emb", "prompt_emb_mask"]
    for datatype in KINDS:
        answer = client.infer("tiny", inputs(datatype), parameters=PARAMETERS, priority=2, request_id="7",
                              outputs=[tritonclient.grpc.InferRequestedOutput("output")])
        response = answer.get_response()
        assert response.id == "7" and response.outputs[0].datatype == datatype
        assert response.parameters["peak_device_bytes"].int64_param > 0
        assert 0 < response.parameters["compute_seconds"].double_param < response.parameters["total_seconds"].double_param
        numpy.save(FOLDER / f"triton-{datatype}.npy", answer.as_numpy("output").astype(numpy.float32))
    error = refusal(client, parameters={"profile": "none"})
    assert error.status() == "StatusCode.NOT_FOUND" and 'profile: "none"' in error.message(), error
    error = refusal(client, timeout=1000)
    assert error.status() == "StatusCode.INVALID_ARGUMENT" and '"timeout"' in error.message(), error


async def asynchronous() -> None:
    async with tritonclient.grpc.aio.InferenceServerClient(ADDRESS) as client:
        assert await client.is_model_ready("tiny")
        answers = await asyncio.gather(*[client.infer("tiny", inputs("FP32"), parameters=PARAMETERS) for _ in range(4)])
    for i, answer in enumerate(answers):
        numpy.save(FOLDER / f"triton-async-{i}.npy", answer.as_numpy("output"))


sync()
asyncio.run(asynchronous())
