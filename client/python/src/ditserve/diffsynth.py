"""A server in the place of the transformer of DiffSynth-Studio's QwenImagePipeline (2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ._deferred import Passes
from ._models import served_model
from ._serve import serve
from .client import Client

__all__ = ["attach", "serve"]

PipelineT = TypeVar("PipelineT")
# What DiffSynth's model_fn takes beside the pass itself, and does something with unless it is None or False.
_REFUSED = (
    "blockwise_controlnet_conditioning",
    "blockwise_controlnet_inputs",
    "context_latents",
    "edit_latents",
    "edit_rope_interpolation",
    "enable_fp8_attention",
    "entity_masks",
    "entity_prompt_emb",
    "kv_cache",
    "layer_input_latents",
    "layer_num",
    "use_gradient_checkpointing",
    "zero_cond_t",
)


def attach(
    pipe: PipelineT,
    client: Client,
    *,
    vram_config: Mapping[str, Any] | None = None,
    vram_limit: float | None = None,
    **options: Any,
) -> PipelineT:
    """Lets a QwenImagePipeline compute its passes at a server; returns it.

        pipe = QwenImagePipeline.from_pretrained(..., model_configs=[<text encoder>, <VAE>])
        attach(pipe, Client("gpu1:50051"), vram_config={...}, vram_limit=0)

    vram_config: DiffSynth-Studio's, unchanged: devices are the server's. vram_limit: GiB of its device memory.
    options: as Client.forward has them.
    The two branches of guidance ride one sweep. A transformer that the pipeline holds is dropped.

    Thread safety: of the pipeline's; several may share a client.
    Errors: NotFound where the server has no such model; ValueError where it has other numerics than DiffSynth-Studio's, and
    for whatever of a call can't be done remotely, by name; AttributeError for other things that a transformer has.
    """
    served_model(client, options.get("model", ""), "diffsynth")
    passes = Passes(client, {"vram_config": vram_config, "vram_limit": vram_limit, **options})
    dit = _RemoteDit()
    made: Any = pipe
    load_lora = made.load_lora

    def load_lora_elsewhere(module: Any, *arguments: Any, **keywords: Any) -> Any:
        if module is dit:
            raise ValueError("load_lora: can't be done remotely")
        return load_lora(module, *arguments, **keywords)

    made.dit, made.load_lora = dit, load_lora_elsewhere
    made.model_fn = lambda **inputs: _model_fn(passes, **inputs)
    return pipe


def _model_fn(
    passes: Passes,
    *,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt_emb: torch.Tensor,
    prompt_emb_mask: torch.Tensor,
    **others: Any,
) -> torch.Tensor:
    """DiffSynth-Studio's model_fn_qwen_image. timestep: 0 to 1000. Returns [B, 16, H/8, W/8]."""
    for name in _REFUSED:
        if others.get(name) is not None and others[name] is not False:
            raise ValueError(f"{name}: can't be done remotely")
    return passes.begin(latents, timestep / 1000, prompt_emb, prompt_emb_mask, latents.shape, output_layout="latents")


class _RemoteDit(torch.nn.Module):
    """Holds the transformer's place in a pipeline, which is a module of modules."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a remote transformer has no {name!r}: its weights are the server's")
