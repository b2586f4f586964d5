"""A server in the place of the transformer of DiffSynth-Studio's QwenImagePipeline (2.1)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ._deferred import Passes
from ._models import served_model
from ._serve import serve
from .client import Client

__all__ = ["attach", "serve"]

PipelineT = TypeVar("PipelineT")
# What DiffSynth's model_fn takes and a pass has, or that is nothing without what is refused. All else that it takes is.
_KNOWN = {
    "blockwise_controlnet",
    "dit",
    "entity_prompt_emb_mask",
    "height",
    "latents",
    "num_inference_steps",
    "progress_id",
    "prompt_emb",
    "prompt_emb_mask",
    "timestep",
    "use_gradient_checkpointing_offload",
    "width",
}
# The rest of those that DiffSynth 2.1.12's takes, for where its signature does not tell: a wrapper may take **inputs.
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

    vram_config: DiffSynth-Studio's, unchanged: devices are the server's; the pipeline's dtype is computed in where it names
        none. vram_limit: GiB of its device memory.
    options: as Client.forward has them.
    The two branches of guidance ride one sweep. A transformer that the pipeline holds is dropped.

    Thread safety: of the pipeline's; several may share a client.
    Errors: NotFound where a server has no such model or profile; ValueError where it has other numerics than
    DiffSynth-Studio's, or several have other models; TypeError or ValueError for options that a pass can't have; ValueError
    for whatever of a call can't be done remotely, by name; AttributeError for other things that a transformer has.
    """
    made: Any = pipe
    if vram_config is not None:
        vram_config = {**vram_config, "computation_dtype": vram_config.get("computation_dtype") or made.torch_dtype}
    options = {"vram_config": vram_config, "vram_limit": vram_limit, **options}
    passes = Passes(client, options)
    served_model(client, options, "diffsynth")
    dit = _RemoteDit()
    load_lora = made.load_lora
    taken = inspect.signature(made.model_fn).parameters.values()
    refused = dict.fromkeys(_REFUSED) | {
        one.name: one.default
        for one in taken
        if one.name not in _KNOWN and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }

    def load_lora_elsewhere(module: Any, *arguments: Any, **keywords: Any) -> Any:
        if module is dit:
            raise ValueError("load_lora: can't be done remotely")
        return load_lora(module, *arguments, **keywords)

    @functools.wraps(made.model_fn)  # Whose parameters it has, for who attaches a pipeline again.
    def model_fn(**inputs: Any) -> torch.Tensor:
        for name, default in refused.items():
            if _does_something(inputs.get(name), default):
                raise ValueError(f"{name}: can't be done remotely")
        return _model_fn(passes, **inputs)

    made.dit, made.load_lora, made.model_fn = dit, load_lora_elsewhere, model_fn
    return pipe


def _model_fn(
    passes: Passes,
    *,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt_emb: torch.Tensor,
    prompt_emb_mask: torch.Tensor,
    **_: Any,
) -> torch.Tensor:
    """DiffSynth-Studio's model_fn_qwen_image. timestep: 0 to 1000. Returns [B, 16, H/8, W/8]."""
    return passes.begin(latents, timestep / 1000, prompt_emb, prompt_emb_mask, latents.shape, output_layout="latents")


def _does_something(given: Any, default: Any) -> bool:
    if given is None or given is False:
        return False
    return not (isinstance(given, bool | int | float | str) and given == default)


class _RemoteDit(torch.nn.Module):
    """Holds the transformer's place in a pipeline, which is a module of modules. It has no parameters."""

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        raise ValueError("load_state_dict: can't be done remotely")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a remote transformer has no {name!r}: its weights are the server's")
