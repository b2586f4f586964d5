"""Client of ditserve, which runs the forward pass of diffusion transformers that do not fit the accelerator.

    client = ditserve.Client("gpu1:50051")
    noise = client.forward(latents, 0.5, prompt_emb, profile="disk").output

`ditserve.diffusers` and `ditserve.diffsynth` put a server in the place of a pipeline's transformer. They need torch, and are
imported when they are first named.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from . import errors, reports
from ._calls import Pending, Run, Stream
from ._connection import Tls
from ._requests import DenoiseOptions, FirstBlockCache, ForwardOptions, Options, PlanOptions, Prompt, TeaCache
from .aio import AsyncClient, AsyncRun, AsyncStream
from .client import Client

if TYPE_CHECKING:
    from . import diffsynth as diffsynth
    from . import diffusers as diffusers
else:

    def __getattr__(name: str) -> ModuleType:
        if name not in ("diffsynth", "diffusers"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.{name}")


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
