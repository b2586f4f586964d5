"""A stand-in for ComfyUI's sampling: Euler's steps with guidance, of prompts whose lengths differ, so a call for each."""

import torch


def sample(model, noise, positive, negative, cfg, sigmas):
    x = noise * sigmas[0]
    for current, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        options = {"sample_sigmas": sigmas, "sigmas": current.expand(1), "patches": {}, "patches_replace": {}}
        denoised = [model.apply_model(x, current.expand(len(x)), c_crossattn=prompt, transformer_options=options)
                    for prompt in (positive, negative)]
        guided = denoised[1] + cfg * (denoised[0] - denoised[1])
        x = x + (x - guided) / current * (following - current)
    return x


def sigmas(steps: int) -> torch.Tensor:
    return torch.linspace(1, 0, steps + 1)
