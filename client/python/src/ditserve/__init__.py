"""Client of ditserve, which runs the forward pass of diffusion transformers that do not fit the accelerator.

    client = ditserve.Client("gpu1:50051")
    noise = client.forward(latents, 0.5, prompt_emb, profile="disk").output

`ditserve.diffusers` and `ditserve.diffsynth` put a server in the place of a pipeline's transformer.
"""

from . import errors, reports
from ._calls import Pending, Run, Stream
from ._connection import Tls
from ._requests import DenoiseOptions, FirstBlockCache, ForwardOptions, Options, PlanOptions, Prompt, TeaCache
from .aio import AsyncClient, AsyncRun, AsyncStream
from .client import Client

__all__ = [
    "AsyncClient",
    "AsyncRun",
    "AsyncStream",
    "Client",
    "DenoiseOptions",
    "FirstBlockCache",
    "ForwardOptions",
    "Options",
    "Pending",
    "PlanOptions",
    "Prompt",
    "Run",
    "Stream",
    "TeaCache",
    "Tls",
    "errors",
    "reports",
]
