"""Compares whole denoising loops of a running ditserve with the pipelines of diffusers and DiffSynth-Studio.

    python scripts/parity/live_denoise.py --bin build/release/bin [--steps 4 20 50] [--blocks 1]

Starts a server for a seeded checkpoint of full width and each implementation, has ditctl make each loop from the prompt
embeddings and the seed that the installed pipeline is given, and prints the largest difference of the latents, relative
to their largest magnitude, in float32. Exits with 1 if one is above 1e-4.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cases import NUMERICS, seeded
from live import FLOAT32, Server, error_of
from references import References
from record_denoising import QWEN_IMAGE, scheduler_of

HEIGHT, WIDTH, SEED, SCALE = 48, 80, 7, 4.0
TOKENS = {"prompt": 9, "negative": 4}


def embeddings(name: str) -> torch.Tensor:
    return torch.from_numpy(seeded(0, name, (1, TOKENS[name], 3584))).float()


def with_diffusers(model: torch.nn.Module, steps: int, guided: bool) -> torch.Tensor:
    """Unpacked latents of the pipeline."""
    from diffusers import QwenImagePipeline

    pipeline = QwenImagePipeline(scheduler=scheduler_of(QWEN_IMAGE), vae=None, text_encoder=None, tokenizer=None,
                                 transformer=model)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(prompt_embeds=embeddings("prompt"), negative_prompt_embeds=embeddings("negative"),
                       true_cfg_scale=SCALE if guided else 1.0, height=HEIGHT, width=WIDTH, num_inference_steps=steps,
                       output_type="latent", generator=torch.Generator("cpu").manual_seed(SEED)).images
    return QwenImagePipeline._unpack_latents(latents, HEIGHT, WIDTH, 8)[:, :, 0]


def with_diffsynth(model: torch.nn.Module, steps: int, guided: bool, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    from diffsynth.pipelines import qwen_image

    class Prompts(qwen_image.PipelineUnit):
        def __init__(self):
            super().__init__(take_over=True)

        def process(self, pipe, inputs_shared, inputs_posi, inputs_nega):
            for name, inputs in (("prompt", inputs_posi), ("negative", inputs_nega)):
                inputs["prompt_emb"] = embeddings(name)
                inputs["prompt_emb_mask"] = torch.ones(1, TOKENS[name], dtype=torch.int64)
            return inputs_shared, inputs_posi, inputs_nega

    class Picture:
        def decode(self, latents, **_):
            return latents

    pipeline = qwen_image.QwenImagePipeline(device="cpu", torch_dtype=torch.float32)
    pipeline.dit, pipeline.vae, pipeline.vae_output_to_image = model, Picture(), lambda latents: latents
    pipeline.units = [qwen_image.QwenImageUnit_ShapeChecker(), Prompts(), qwen_image.QwenImageUnit_NoiseInitializer(),
                      qwen_image.QwenImageUnit_InputImageEmbedder()]
    return pipeline(seed=SEED, height=height, width=width, num_inference_steps=steps,
                    cfg_scale=SCALE if guided else 1.0, progress_bar_cmd=lambda steps: steps)


def command_of(server: Server, steps: int, guided: bool) -> list:
    """The command that has the server make such a loop, without an output."""
    files = {name: server.folder / f"{name}.safetensors" for name in TOKENS}
    for name, file in files.items():
        save_file({"prompt_emb": embeddings(name)}, str(file))
    guidance = ["--negative-emb", files["negative"], "--cfg-scale", str(SCALE)] if guided else []
    return [server.binaries / "ditctl", "denoise", "--address", server.address, "--height", str(HEIGHT), "--width",
            str(WIDTH), "--seed", str(SEED), "--dtype", "float32", "--steps", str(steps), "--prompt-emb", files["prompt"],
            *guidance, "--vram-config", FLOAT32]


def with_server(server: Server, steps: int, guided: bool) -> torch.Tensor:
    output = server.folder / "latents.safetensors"
    subprocess.run([*command_of(server, steps, guided), "--output", output], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return load_file(output)["latents"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20, 50])
    parser.add_argument("--blocks", type=int, default=1)
    arguments = parser.parse_args()
    loops = {"diffusers": with_diffusers, "diffsynth": with_diffsynth}
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = folder / "checkpoint"
        subprocess.run([arguments.bin / "ditctl", "make-checkpoint", "--out", checkpoint, "--blocks", str(arguments.blocks)],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for numerics in NUMERICS:
            model = References(checkpoint).load(numerics, torch.float32).model
            with Server(arguments.bin, checkpoint, numerics, folder, "cpu") as server, torch.no_grad():
                server.await_ready()
                for steps in arguments.steps:
                    for guided in (False, True):
                        expected = loops[numerics](model, steps, guided)
                        error = error_of(with_server(server, steps, guided), expected)
                        worst = max(worst, error)
                        print(f"{numerics:9}  {steps:3} steps  {'guided' if guided else 'plain':6}  {error:.1e}", flush=True)
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    main()
