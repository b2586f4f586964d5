"""The loader, and the model that it gives.

Its numerics are diffusers' (docs/python.md): ComfyUI's own where both sides of the picture are multiples of 32 pixels, but
for the dtypes in which it rotates queries and keys and takes the timestep.

Workflows come from anywhere. So they name the server and the model, and no file: whom a token may be sent to, and whom TLS
believes, is said by who starts ComfyUI, in its environment (`_operators_access`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import comfy.utils
import torch

import ditserve
from ditserve._models import served_model

_INTERRUPT_POLL_SECONDS = 0.1
_BAR_PARTS = 1000


class DitserveLoader:
    """Takes the place of "Load Diffusion Model" where a server holds Qwen-Image."""

    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "address": ("STRING", {"default": "127.0.0.1:50051"}),
                "profile": ("STRING", {"default": "", "tooltip": "How weights are held; empty: the server's default"}),
                "vram_limit_gib": ("FLOAT", {"default": -1.0, "min": -1.0, "tooltip": "Below 0: the profile's"}),
            },
            "optional": {
                "model": ("STRING", {"default": "", "tooltip": "Where the server has several"}),
            },
        }

    def load(self, address: str, profile: str, vram_limit_gib: float, model: str = "") -> tuple[Any]:
        """Errors: ValueError for an address that the operator's token is not for; Client's; NotFound for model or profile;
        ValueError for another numerics than diffusers'."""
        client = ditserve.Client(address, **_operators_access(address))
        options = {"model": model, "profile": profile, "vram_limit": vram_limit_gib if vram_limit_gib >= 0 else None}
        served_model(client, options, "diffusers")
        config = comfy.supported_models.QwenImage({"image_model": "qwen_image", "disable_unet_model_creation": True})
        config.set_inference_dtype(torch.bfloat16, None)
        made = config.get_model({})
        made.diffusion_model = RemoteDiffusionModel(client, torch.bfloat16, options)
        made.memory_required = lambda *_, **__: 0  # Nothing of it is computed here.
        offload = comfy.model_management.unet_offload_device()
        return (RemotePatcher(made, comfy.model_management.get_torch_device(), offload),)


def _operators_access(address: str) -> dict[str, Any]:
    """Client's token and tls, by ComfyUI's environment:

    DITSERVE_TOKEN_FILE: holds the token, and is read before each call.
    DITSERVE_ADDRESSES: where there is a token, the servers that it is for, with commas between them; no others are called.
    DITSERVE_CA_FILE: authorities that are believed (PEM); without it no TLS is spoken.
    """
    token, authorities = os.environ.get("DITSERVE_TOKEN_FILE", ""), os.environ.get("DITSERVE_CA_FILE", "")
    if token and address not in map(str.strip, os.environ.get("DITSERVE_ADDRESSES", "").split(",")):
        raise ValueError("address: ComfyUI has a token, and DITSERVE_ADDRESSES does not name this server for it")
    return {
        "token": (lambda: Path(token).read_text().strip()) if token else "",
        "tls": ditserve.Tls(Path(authorities).read_bytes()) if authorities else False,
    }


class RemotePatcher(comfy.model_patcher.ModelPatcher):  # type: ignore[misc]
    """Refuses what would be left out: weights are the server's, so LoRA and the like have nothing to patch."""

    def add_patches(self, *_: Any, **__: Any) -> Any:
        raise ValueError("patches of weights (LoRA): can't be done remotely")

    def add_hook_patches(self, *_: Any, **__: Any) -> Any:
        raise ValueError("patches of weights (LoRA as a hook): can't be done remotely")

    def get_key_patches(self, *_: Any, **__: Any) -> Any:
        raise ValueError("weights (merging models): can't be done remotely")

    def set_injections(self, *_: Any, **__: Any) -> Any:
        raise ValueError("injections (LoRA by a bypass): can't be done remotely")

    def clone(self, *arguments: Any, **keywords: Any) -> RemotePatcher:
        made = super().clone(*arguments, **keywords)
        made.__class__ = RemotePatcher  # Some versions make a plain one.
        return made  # type: ignore[no-any-return]


class RemoteDiffusionModel:
    """Computes what ComfyUI asks of Qwen-Image's diffusion model at a server.

    Errors: InterruptProcessingException where ComfyUI is told to stop; ValueError for what can't be done remotely, by name.
    """

    def __init__(self, client: ditserve.Client, dtype: torch.dtype, options: dict[str, Any]) -> None:
        self.dtype = dtype
        self._client, self._options, self._shown = client, options, _Shown()

    def __call__(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        ref_latents: list[torch.Tensor] | None = None,
        additional_t_cond: torch.Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """x: [B, 16, 1, H/8, W/8]; timestep: [B], 0 to 1; context: [B, T, 3584]. Returns x's shape."""
        told = transformer_options or {}
        extension = comfy.patcher_extension
        wrappers = extension.get_all_wrappers(extension.WrappersMP.DIFFUSION_MODEL, told)
        # What wraps a model finds these by their places, as ComfyUI's own Qwen-Image hands them on.
        return extension.WrapperExecutor.new_class_executor(self._compute, self, wrappers).execute(
            x, timestep, context, attention_mask, ref_latents, additional_t_cond, told, **others
        )

    def _compute(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        attention_mask: torch.Tensor | None,
        ref_latents: list[torch.Tensor] | None,
        additional_t_cond: torch.Tensor | None,
        transformer_options: dict[str, Any],
        **others: Any,
    ) -> torch.Tensor:
        told = transformer_options
        refused = {
            "ref_latents": ref_latents,
            "additional_t_cond": additional_t_cond,
            **others,
            **{name: told.get(name) for name in ("patches", "patches_replace", "optimized_attention_override")},
        }
        for name, given in refused.items():
            if _does_something(given):
                raise ValueError(f"{name}: can't be done remotely")
        if attention_mask is not None and attention_mask.is_floating_point():
            raise ValueError("attention_mask: can't be done remotely where it is of floating point: it is added to scores")
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise ValueError(f"width, height: {x.shape[-1] * 8}, {x.shape[-2] * 8}, expected multiples of 16")
        latents = x.reshape(x.shape[0], x.shape[1], *x.shape[-2:])
        run = self._client.forward_stream(
            latents, timestep.to(x.dtype), context, attention_mask, output_layout="latents", **self._options
        )
        with _ended_by_interrupts(run):
            for progress in run:
                self._shown.show(told, progress.modules_done / max(progress.modules_total, 1))
            self._shown.show(told, 1.0)  # Of progress, who reads slowly misses some.
            return run.result().output.reshape(x.shape)


@contextmanager
def _ended_by_interrupts(run: ditserve.Run[Any, Any]) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_INTERRUPT_POLL_SECONDS):
            if comfy.model_management.processing_interrupted():
                run.cancel()
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    except ditserve.errors.Cancelled:
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise
    finally:
        ended.set()
        watching.join()
        run.cancel()


def _does_something(given: Any) -> bool:
    """ComfyUI hands on dicts and lists of what there is: of nothing, too."""
    if isinstance(given, dict):
        return any(map(_does_something, given.values()))
    return len(given) > 0 if isinstance(given, list) else given is not None


class _Shown:
    """ComfyUI's bar, which never falls within a run: several calls may make a step, and some samplers look ahead."""

    def __init__(self) -> None:
        self._run: Any = None  # The tensor of all sigmas, which a run has of its own, mostly.
        self._is_at_first, self._share = False, 0.0

    def show(self, told: dict[str, Any], done: float) -> None:
        """done: the share of the call's modules."""
        schedule, current = _sigmas(told)
        run = told.get("sample_sigmas")
        is_at_first = current >= schedule[0]
        if run is None or run is not self._run or (is_at_first and not self._is_at_first):  # A run begins.
            self._share = 0.0
        self._run, self._is_at_first = run, is_at_first
        steps = max(len(schedule) - 1, 1)
        step = min(max(sum(sigma >= current for sigma in schedule), 1), steps) - 1
        self._share = max(self._share, (step + done) / steps)
        comfy.utils.ProgressBar(_BAR_PARTS).update_absolute(round(self._share * _BAR_PARTS))


def _sigmas(told: dict[str, Any]) -> tuple[list[float], float]:
    """All of the sampler's, of which the last is the end, and the current one; where it tells none, those of one step."""
    sigmas, current = told.get("sample_sigmas"), told.get("sigmas")
    if sigmas is None or current is None:
        return [1.0, 0.0], 1.0
    return sigmas.tolist(), float(current.flatten()[0])


NODE_CLASS_MAPPINGS = {"DitserveLoader": DitserveLoader}
NODE_DISPLAY_NAME_MAPPINGS = {"DitserveLoader": "Load Diffusion Model (ditserve)"}
