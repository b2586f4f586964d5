"""Samples with the node's model by ComfyUI's own sampler, and by Euler's steps that ask the same model; prints how far the
pictures are from each other.

    python comfy_sampling.py COMFYUI ADDRESS

In a process of its own: that of the tests has a stand-in for ComfyUI's modules.
"""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args  # noqa: E402

args.cpu = True  # Before the modules look for a device.
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402

STEPS, GUIDANCE = 3, 4.0


def loader():
    """The node, loaded by its folder as ComfyUI does."""
    folder = Path(__file__).resolve().parents[3] / "client/comfyui"
    spec = importlib.util.spec_from_file_location("ditserve_node", folder / "__init__.py",
                                                  submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["ditserve_node"] = module
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS["DitserveLoader"]()


def by_hand(patcher, noise: torch.Tensor, prompts: list[torch.Tensor]) -> torch.Tensor:
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
    x = noise * sigmas[0]
    for current, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        options = {"sample_sigmas": sigmas, "sigmas": current.expand(1)}
        positive, negative = (
            patcher.model.apply_model(x, current.expand(1), c_crossattn=prompt, transformer_options=options)
            for prompt in prompts)
        x = x + (x - negative - GUIDANCE * (positive - negative)) / current * (following - current)
    return patcher.model.process_latent_out(x)


@torch.inference_mode()
def main() -> None:
    (patcher,) = loader().load(sys.argv[2], "", -1.0)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 16, 1, 8, 12, generator=generator)
    prompts = [torch.randn(1, tokens, 3584, generator=generator) for tokens in (5, 2)]
    positive, negative = ([[prompt, {}]] for prompt in prompts)
    picture = comfy.sample.sample(patcher, noise, STEPS, GUIDANCE, "euler", "simple", positive, negative,
                                  torch.zeros_like(noise), seed=3)
    expected = by_hand(patcher, noise, prompts)
    print(((picture - expected).abs().max() / expected.abs().max()).item())


main()
