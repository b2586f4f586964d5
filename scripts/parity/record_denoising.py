"""Records what diffusers and DiffSynth-Studio do around the model in a denoising loop, for tests/models/denoising.

    pip install --no-deps --target PACKAGES vllm-omni==0.30.0 invokeai==6.14.2
    python scripts/parity/record_denoising.py PACKAGES tests/models/denoising/expected.safetensors

needs the packages of requirements.txt, and of two more a file each. The loops are those of the pipelines themselves,
with a model that answers made-up values (cases.py). The metadata describes each case; its tensors are named after it.
"""

import json
import math
import random
import sys
import types
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from safetensors.torch import save_file

from cases import seeded

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
NAMES = {BFLOAT16: "bfloat16", FLOAT16: "float16", FLOAT32: "float32"}
QWEN_IMAGE = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
LN_3 = {**QWEN_IMAGE, "base_shift": math.log(3), "max_shift": math.log(3)}
# How far a step cache's signal has moved, by step.
DRIFTS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.11, 0.16, 0.3, 0.305, 0.31, 0.9, 0.91, 0.88, 1.1, 1.1)

tensors: dict[str, torch.Tensor] = {}
metadata: dict[str, str] = {}


def record(name: str, description: dict, **values: torch.Tensor) -> None:
    metadata[name] = json.dumps(description)
    tensors.update({f"{name}.{key}": value.contiguous() for key, value in values.items()})


def made_up(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(seeded(0, name, shape)).to(dtype)


def scheduler_of(dynamic_shift: dict | None, shift: float = 1.0, shift_terminal: float | None = 0.02):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        **(dynamic_shift or {}),
        shift=shift,
        use_dynamic_shifting=dynamic_shift is not None,
        shift_terminal=shift_terminal,
    )


def schedule_cases() -> list[dict]:
    plain = {"dynamic_shift": QWEN_IMAGE, "shift": 1.0, "shift_terminal": 0.02, "sigmas": [], "strength": 1.0}
    cases = [{**plain, "steps": steps, "tokens": tokens} for steps, tokens in
             ((4, 4096), (8, 4096), (50, 4096), (2, 1), (3, 6889), (7, 15), (20, 256), (28, 3520), (30, 6889),
              (50, 16384), (100, 8192), (999, 4096), (1000, 6889))]
    cases += [{**plain, "dynamic_shift": LN_3, "shift_terminal": None, "steps": steps, "tokens": tokens}
              for steps, tokens in ((1, 4096), (2, 64), (4, 4096), (8, 6889), (16, 4096))]
    cases += [{**plain, "dynamic_shift": None, "shift": shift, "shift_terminal": terminal, "steps": steps, "tokens": 9}
              for shift, terminal, steps in ((3.0, None, 20), (5.0, None, 4), (1.15, None, 28), (1.0, None, 5),
                                             (0.7, 0.1, 9), (3.0, 0.02, 13))]
    cases += [{**plain, "sigmas": sigmas, "shift_terminal": terminal, "dynamic_shift": shift, "tokens": 4096}
              for sigmas, terminal, shift in (
                  ([1.0, 0.75, 0.5, 0.25], None, QWEN_IMAGE), ([0.9, 0.3], 0.02, QWEN_IMAGE),
                  ([1.0, 0.9, 0.6, 0.1, 0.003], 0.02, LN_3), ([0.8, 0.7, 0.05], None, None))]
    cases += [{**plain, "steps": steps, "strength": strength, "tokens": 6889}
              for steps, strength in ((50, 0.6), (50, 0.95), (4, 0.5), (10, 0.7), (7, 1 / 3), (30, 0.001), (3, 0.99))]
    chance = random.Random(1)
    for _ in range(40):
        case = {**plain, "steps": chance.randint(2, 120), "tokens": chance.randint(1, 17000)}
        base = chance.uniform(0.1, 1.5)
        case["dynamic_shift"] = {"base_shift": base, "max_shift": base + chance.uniform(0.0, 0.7),
                                 "base_image_seq_len": chance.randint(1, 512),
                                 "max_image_seq_len": chance.randint(4000, 9000)}
        case["shift_terminal"] = chance.choice((None, 0.02, chance.uniform(0.001, 0.2)))
        case["strength"] = chance.choice((1.0, chance.uniform(0.01, 1.0)))
        cases.append(case)
    return cases


def record_diffusers_schedules() -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage as pipelines
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_img2img import QwenImageImg2ImgPipeline

    for i, case in enumerate(schedule_cases()):
        scheduler = scheduler_of(case["dynamic_shift"], case["shift"], case["shift_terminal"])
        shift = case["dynamic_shift"] or QWEN_IMAGE
        mu = pipelines.calculate_shift(case["tokens"], shift["base_image_seq_len"], shift["max_image_seq_len"],
                                       shift["base_shift"], shift["max_shift"])
        steps = case.get("steps")
        sigmas = case["sigmas"] or np.linspace(1.0, 1 / steps, steps)
        _, steps = pipelines.retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=mu)
        pipeline = types.SimpleNamespace(scheduler=scheduler)
        timesteps, _ = QwenImageImg2ImgPipeline.get_timesteps(pipeline, steps, case["strength"], "cpu")
        record(f"schedule.diffusers.{i:03}", {**case, "numerics": "diffusers"},
               sigmas=scheduler.sigmas[scheduler.begin_index:].clone(), timesteps=timesteps.clone())


def record_diffsynth_schedules() -> None:
    from diffsynth.diffusion.flow_match import FlowMatchScheduler

    plain = {"dynamic_shift": QWEN_IMAGE, "shift": 1.0, "shift_terminal": 0.02, "sigmas": [], "strength": 1.0}
    cases = [{**plain, "steps": steps, "tokens": tokens, "strength": strength} for steps, tokens, strength in
             ((30, 6889, 1.0), (40, 4096, 0.6), (4, 4096, 0.9), (7, 15, 0.05), (1000, 16384, 1.0), (1, 4096, 0.5))]
    cases += [{**plain, "dynamic_shift": LN_3, "shift_terminal": None, "steps": steps, "tokens": 4096}
              for steps in (4, 8)]
    mu = {**QWEN_IMAGE, "base_shift": 0.8, "max_shift": 0.8}  # What it takes where it is told no number of tokens.
    cases += [{**plain, "dynamic_shift": mu, "steps": 20, "tokens": 4096}]
    cases += [{**plain, "dynamic_shift": None, "shift": 5.0, "shift_terminal": None, "steps": 9, "tokens": 1}]
    cases += [{**plain, "sigmas": [1.0, 0.75, 0.5, 0.25], "tokens": 4096}]
    for i, case in enumerate(cases):
        if case["sigmas"]:
            scheduler = FlowMatchScheduler("Qwen-Image")
            scheduler.set_timesteps(sigmas=case["sigmas"])
        elif case["dynamic_shift"] is None:
            scheduler = FlowMatchScheduler("Wan")
            scheduler.set_timesteps(case["steps"], case["strength"], shift=case["shift"])
        elif case["dynamic_shift"] is mu:
            scheduler = FlowMatchScheduler("Qwen-Image")
            scheduler.set_timesteps(case["steps"], case["strength"])
        else:
            lightning = case["dynamic_shift"] is LN_3
            scheduler = FlowMatchScheduler("Qwen-Image-Lightning" if lightning else "Qwen-Image")
            scheduler.set_timesteps(case["steps"], case["strength"], dynamic_shift_len=case["tokens"])
        record(f"schedule.diffsynth.{i:03}", {**case, "numerics": "diffsynth"},
               sigmas=scheduler.sigmas, timesteps=scheduler.timesteps)


def record_noise() -> None:
    """The last values stand for all before them: the generator goes through those first."""
    from diffusers.utils.torch_utils import randn_tensor

    for i, (seeds, batch, height, width) in enumerate((
            ([42], 1, 16, 16), ([0], 1, 48, 80), ([2**31 + 5], 3, 64, 64), ([7, 7, 8], 3, 32, 48),
            ([2**64 - 3], 1, 1328, 1328), ([2**32 + 42], 1, 16, 16), ([1, 2], 2, 1024, 768))):
        for dtype in NAMES:
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
            shape = (batch, 1, 16, height // 8, width // 8)
            generator = generators if len(generators) > 1 else generators[0]
            noise = randn_tensor(shape, generator=generator, device=torch.device("cpu"), dtype=dtype)
            record(f"noise.{i}.{NAMES[dtype]}",
                   {"seeds": seeds, "batch": batch, "height": height, "width": width, "dtype": NAMES[dtype]},
                   last=noise.flatten()[-1024:].clone())


class MadeUpTransformer(torch.nn.Module):
    """Answers made-up predictions and keeps the timesteps and latents that it is given."""

    config = types.SimpleNamespace(in_channels=64, guidance_embeds=False)
    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.branch, self.calls, self.timesteps, self.latents = "", {"cond": 0, "uncond": 0}, [], []

    def cache_context(self, branch: str):
        self.branch = branch
        return torch.no_grad()

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **_):
        step = self.calls[self.branch]
        self.calls[self.branch] += 1
        if self.branch == "cond":
            self.timesteps.append(timestep)
            self.latents.append(hidden_states)
        return (made_up(f"{self.branch}.{step}", tuple(hidden_states.shape), hidden_states.dtype),)


def record_diffusers_loops() -> None:
    from diffusers import QwenImageImg2ImgPipeline, QwenImageInpaintPipeline, QwenImagePipeline

    for i, (kind, dtype, height, width, steps, scale, strength, seeds, batch) in enumerate((
            ("text", BFLOAT16, 64, 64, 4, 1.0, 1.0, [5], 1), ("text", FLOAT32, 48, 80, 5, 4.3, 1.0, [5], 1),
            ("text", BFLOAT16, 16, 32, 9, 4.3, 1.0, [1, 2], 2), ("text", FLOAT16, 48, 48, 6, 2.5, 1.0, [9], 2),
            ("image", BFLOAT16, 64, 48, 10, 1.0, 0.6, [3], 1), ("image", FLOAT32, 32, 32, 4, 3.0, 0.5, [3], 1),
            ("inpaint", BFLOAT16, 64, 64, 8, 1.0, 0.85, [4], 1), ("inpaint", FLOAT32, 48, 80, 5, 4.3, 1.0, [4], 1),
            ("inpaint", BFLOAT16, 32, 48, 6, 1.0, 0.7, [6, 7], 2))):
        transformer = MadeUpTransformer()
        pipelines = {"text": QwenImagePipeline, "image": QwenImageImg2ImgPipeline, "inpaint": QwenImageInpaintPipeline}
        pipeline = pipelines[kind](scheduler=scheduler_of(QWEN_IMAGE), vae=None, text_encoder=None, tokenizer=None,
                                   transformer=transformer)
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        latent_shape = (batch, 16, height // 8, width // 8)
        arguments: dict = {}
        mask = torch.from_numpy(seeded(0, "mask", (1, 1, *latent_shape[2:])) > 0).to(FLOAT32)
        if kind != "text":
            arguments |= {"image": made_up("image", latent_shape, FLOAT32), "strength": strength}
        if kind == "inpaint":
            arguments |= {"mask_image": mask.repeat_interleave(8, 2).repeat_interleave(8, 3),
                          "masked_image_latents": torch.zeros(latent_shape)}
        latents = pipeline(
            prompt_embeds=torch.zeros(batch, 1, 8, dtype=dtype),
            negative_prompt_embeds=torch.zeros(batch, 1, 8, dtype=dtype), true_cfg_scale=scale, height=height,
            width=width, num_inference_steps=steps, output_type="latent",
            generator=generators if len(generators) > 1 else generators[0], **arguments).images
        record(f"loop.diffusers.{i}",
               {"numerics": "diffusers", "kind": kind, "dtype": NAMES[dtype], "height": height, "width": width,
                "steps": steps, "scale": scale, "strength": strength, "seeds": seeds, "batch": batch},
               packed=torch.stack([*transformer.latents, latents]),
               timesteps=torch.stack([timestep[0] for timestep in transformer.timesteps]))


class LatentsForImages(torch.nn.Module):
    """Stands where the VAE does: encodes any image to made-up latents, and decodes nothing."""

    def __init__(self, latents: torch.Tensor):
        super().__init__()
        self.latents = latents

    def encode(self, image, **_):
        return self.latents

    def decode(self, latents, **_):
        return latents


def record_diffsynth_loops() -> None:
    from diffsynth.pipelines import qwen_image

    for i, (kind, dtype, height, width, steps, scale, strength, seed) in enumerate((
            ("text", BFLOAT16, 64, 64, 4, 1.0, 1.0, 5), ("text", FLOAT32, 48, 80, 5, 4.3, 1.0, 5),
            ("text", BFLOAT16, 48, 32, 9, 0.7, 1.0, 6), ("image", BFLOAT16, 64, 48, 10, 4.3, 0.6, 3),
            ("inpaint", BFLOAT16, 64, 64, 8, 3.3, 0.85, 4), ("inpaint", FLOAT32, 48, 80, 5, 1.0, 1.0, 4))):
        latent_shape = (1, 16, height // 8, width // 8)
        timesteps, steps_latents, calls = [], [], {"cond": 0, "uncond": 0}

        def model_fn(branch, timestep, latents, **_):
            step = calls[branch]
            calls[branch] += 1
            if branch == "cond":
                timesteps.append(timestep / 1000)  # As its model_fn begins.
                steps_latents.append(latents)
            return made_up(f"{branch}.{step}", tuple(latents.shape), latents.dtype)

        class Branches(qwen_image.PipelineUnit):
            def __init__(self):
                super().__init__(take_over=True)

            def process(self, pipe, inputs_shared, inputs_posi, inputs_nega):
                inputs_posi["branch"], inputs_nega["branch"] = "cond", "uncond"
                return inputs_shared, inputs_posi, inputs_nega

        class KeepMask(qwen_image.QwenImageUnit_Inpaint):
            def process(self, pipe, inpaint_mask, **others):
                masks.update(super().process(pipe, inpaint_mask, **others))
                return masks

        masks: dict[str, torch.Tensor] = {}
        pipeline = qwen_image.QwenImagePipeline(device="cpu", torch_dtype=dtype)
        pipeline.model_fn, pipeline.in_iteration_models = model_fn, ()
        pipeline.vae = LatentsForImages(made_up("image", latent_shape, dtype))
        pipeline.vae_output_to_image = lambda latents: latents
        pipeline.units = [Branches(), qwen_image.QwenImageUnit_NoiseInitializer(),
                          qwen_image.QwenImageUnit_InputImageEmbedder(), KeepMask()]
        arguments: dict = {}
        if kind != "text":
            arguments |= {"input_image": PIL.Image.new("RGB", (width, height)), "denoising_strength": strength}
        if kind == "inpaint":
            grey = np.clip(seeded(0, "mask", latent_shape[2:]) * 128 + 128, 0, 255).astype(np.uint8)
            arguments |= {"inpaint_mask": PIL.Image.fromarray(grey)}
        latents = pipeline(seed=seed, height=height, width=width, num_inference_steps=steps, cfg_scale=scale,
                           progress_bar_cmd=lambda steps: steps, **arguments)
        extra = {"mask": masks["inpaint_mask"]} if masks else {}
        record(f"loop.diffsynth.{i}",
               {"numerics": "diffsynth", "kind": kind, "dtype": NAMES[dtype], "height": height, "width": width,
                "steps": steps, "scale": scale, "strength": strength, "seeds": [seed], "batch": 1},
               latents=torch.stack([*steps_latents, latents]), timesteps=torch.cat(timesteps),
               sigmas=pipeline.scheduler.sigmas, **extra)


def signal_of(step: int, dtype: torch.dtype) -> torch.Tensor:
    """What a step cache compares at this step. Shape [1, 5, 64]."""
    first, change = seeded(0, "signal", (1, 5, 64)), seeded(0, "change", (1, 5, 64))
    return torch.from_numpy(first + np.float32(DRIFTS[step]) * change).to(dtype)


def record_first_block_cache() -> None:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
    from diffusers.models.cache_utils import CacheMixin

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.added, self.runs = None, 0

        def forward(self, hidden_states, encoder_hidden_states):
            self.runs += 1
            return encoder_hidden_states, hidden_states + self.added

    class Model(torch.nn.Module, CacheMixin):
        def __init__(self):
            super().__init__()
            self.transformer_blocks = torch.nn.ModuleList((Block(), Block()))

        def forward(self, hidden_states, encoder_hidden_states):
            for block in self.transformer_blocks:
                encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states)
            return hidden_states

    TransformerBlockRegistry.register(Block, TransformerBlockMetadata(return_hidden_states_index=1,
                                                                      return_encoder_hidden_states_index=0))
    for dtype in (BFLOAT16, FLOAT32):
        for threshold in (0.05, 0.2, 0.0):
            model = Model()
            apply_first_block_cache(model, FirstBlockCacheConfig(threshold=threshold))
            first, rest = model.transformer_blocks
            outputs, reused = [], []
            for step in range(len(DRIFTS)):
                first.added, rest.added = signal_of(step, dtype), made_up(f"rest.{step}", (1, 5, 64), dtype)
                before = rest.runs
                with model.cache_context("cond"):
                    outputs.append(model(made_up(f"x.{step}", (1, 5, 64), dtype), torch.zeros(1, 2, 64, dtype=dtype)))
                reused.append(rest.runs == before)
            record(f"cache.first_block.{NAMES[dtype]}.{threshold}",
                   {"rule": "first_block", "dtype": NAMES[dtype], "threshold": threshold, "drifts": DRIFTS,
                    "reused": reused},
                   outputs=torch.cat(outputs))


def stub(name: str, **members) -> None:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(members)


def stub_packages(packages: Path, *names: str) -> None:
    """Packages whose modules can be imported though they themselves, which need much more, are not."""
    for name in names:
        stub(name, __path__=[str(packages / name.replace(".", "/"))])


def record_teacache(packages: Path) -> None:
    stub_packages(packages, "vllm_omni", "vllm_omni.diffusion", "vllm_omni.diffusion.cache",
                  "vllm_omni.diffusion.cache.teacache")
    stub("vllm_omni.diffusion.cache.teacache.extractors", get_extractor=None)
    stub("vllm_omni.diffusion.distributed", __path__=[])
    stub("vllm_omni.diffusion.distributed.parallel_state", get_classifier_free_guidance_rank=None,
         get_classifier_free_guidance_world_size=None, get_sp_group=None, model_parallel_is_initialized=lambda: False)
    stub("vllm_omni.diffusion.hooks", HookRegistry=None, ModelHook=object, StateManager=lambda state: None)
    from vllm_omni.diffusion.cache.teacache.config import TeaCacheConfig
    from vllm_omni.diffusion.cache.teacache.hook import TeaCacheHook
    from vllm_omni.diffusion.cache.teacache.state import TeaCacheState

    for dtype in (BFLOAT16, FLOAT32):
        for threshold in (0.05, 0.2, 0.6):
            hook, state, reused = TeaCacheHook(TeaCacheConfig(rel_l1_thresh=threshold)), TeaCacheState(), []
            for step in range(len(DRIFTS)):
                signal = signal_of(step, dtype)
                reused.append(not hook._should_compute_full_transformer(state, signal))
                state.previous_modulated_input = signal
                state.cnt += 1
            metadata[f"cache.teacache.{NAMES[dtype]}.{threshold}"] = json.dumps(
                {"rule": "teacache", "dtype": NAMES[dtype], "threshold": threshold, "drifts": DRIFTS, "reused": reused})


def record_preview(packages: Path) -> None:
    stub_packages(packages, "invokeai", "invokeai.app", "invokeai.app.util")
    for name in ("invokeai.app.services", "invokeai.app.services.session_processor", "invokeai.backend",
                 "invokeai.backend.model_manager", "invokeai.backend.stable_diffusion"):
        stub(name, __path__=[])
    stub("invokeai.app.services.session_processor.session_processor_common", CanceledException=Exception)
    stub("invokeai.backend.model_manager.taxonomy", BaseModelType=None)
    stub("invokeai.backend.stable_diffusion.diffusers_pipeline", PipelineIntermediateState=None)
    from invokeai.app.util import step_callback

    latents = made_up("latents", (16, 12, 20), FLOAT32)
    picture = step_callback.sample_to_lowres_estimated_image(
        latents, torch.tensor(step_callback.QWEN_IMAGE_LATENT_RGB_FACTORS),
        latent_rgb_bias=torch.tensor(step_callback.QWEN_IMAGE_LATENT_RGB_BIAS))
    record("preview", {}, picture=torch.from_numpy(np.array(picture, dtype=np.float32)))


def main() -> None:
    packages, target = (Path(argument) for argument in sys.argv[1:3])
    record_diffusers_schedules()
    record_diffsynth_schedules()
    record_noise()
    record_diffusers_loops()
    record_diffsynth_loops()
    record_first_block_cache()
    record_teacache(packages)
    record_preview(packages)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(target), metadata)
    print(f"{len(tensors)} tensors, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
