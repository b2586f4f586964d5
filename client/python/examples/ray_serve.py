"""Pictures behind Ray Serve: replicas that hold text encoder and VAE, and share ditserve's servers.

    serve run ray_serve:pictures pipeline=Qwen/Qwen-Image addresses=gpu1:50051,gpu2:50051
    curl "http://127.0.0.1:8000/?prompt=a+cat&side=1024&steps=50&seed=1" > cat.png

A replica makes one picture at a time, for a pipeline keeps the schedule of one. All replicas' passes ride the servers'
sweeps together, each on the server that has the least to do.
"""

import io

import torch
from diffusers import QwenImagePipeline
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

import ditserve
from ditserve.diffusers import RemoteTransformer


@serve.deployment(num_replicas=2, max_ongoing_requests=1)
class Pictures:
    def __init__(self, pipeline: str, addresses: list[str]):
        self._pipe = QwenImagePipeline.from_pretrained(pipeline, transformer=None, dtype=torch.bfloat16)
        self._pipe.transformer = RemoteTransformer(ditserve.Client(addresses), profile="disk")

    def __call__(self, request: Request) -> Response:
        asked = request.query_params
        side = int(asked.get("side", 1024))
        picture = self._pipe(
            prompt=asked["prompt"],
            negative_prompt=" ",
            height=side,
            width=side,
            num_inference_steps=int(asked.get("steps", 50)),
            generator=torch.Generator().manual_seed(int(asked.get("seed", 0))),
        ).images[0]
        written = io.BytesIO()
        picture.save(written, "PNG")
        return Response(written.getvalue(), media_type="image/png")


def pictures(arguments: dict) -> serve.Application:
    return Pictures.bind(arguments["pipeline"], arguments["addresses"].split(","))
