"""Compares pipelines whose transformer is a running ditserve's with the same pipelines of diffusers and DiffSynth-Studio.

    PYTHONPATH=client/python/src python scripts/parity/live_pipelines.py --bin build/release/bin

Starts a server for a seeded checkpoint of full width and each implementation, runs every case with the installed package's
transformer and with the server's, and prints the largest difference of the latents, relative to their largest magnitude.
Exits with 1 if one is above 1e-5 in float32; if in bfloat16 ours are on average (of the cases with guidance, or without)
more than 1.2 times as far from float32 as the package's; or if guidance moves more than 1.1 times the bytes of what has none.
"""

import argparse
import dataclasses
import itertools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from cases import seeded
from live import Server, error_of
from record_denoising import QWEN_IMAGE, scheduler_of
from references import References

import ditserve
import ditserve.diffsynth
import ditserve.diffusers

HEIGHT, WIDTH, STEPS, SEED, SCALE = 48, 80, 3, 7, 4.0
KINDS = ("text", "image", "inpaint")  # What a picture is begun from.
# A server rounds to bfloat16 where the package does, and only sums in another order: so of cases together it is farther
# from float32 by chance alone. (The largest difference of a row of docs/python.md was 1.03 times the package's at most.)
TOLERANCE, MOST_FARTHER, MOST_BYTES = 1e-5, 1.2, 1.1
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    guided: bool
    batch: int

    def __str__(self) -> str:
        return f"{self.kind}{', guided' if self.guided else ''}, batch {self.batch}"


def vram_config(dtype: torch.dtype) -> dict:
    return {"offload_dtype": "disk", "onload_dtype": "disk", "computation_dtype": dtype}


def embeddings(name: str, tokens: int, batch: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(seeded(0, name, (batch, tokens, 3584))).to(dtype)


def picture(name: str) -> Image.Image:
    values = torch.from_numpy(seeded(0, name, (HEIGHT, WIDTH, 3))) * 40 + 128
    return Image.fromarray(values.clamp(0, 255).byte().numpy())


def small_vae() -> torch.nn.Module:
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(SEED)
    return AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


class Diffusers:
    """Its pipelines that use the transformer, with every argument that reaches it."""

    numerics = "diffusers"
    batches = (1, 2)

    def __init__(self):
        self.vae = small_vae()

    def remote(self, client: ditserve.Client, dtype: torch.dtype):
        return ditserve.diffusers.RemoteTransformer(client, vram_config=vram_config(dtype), vram_limit=0)

    def run(self, case: Case, transformer, dtype: torch.dtype) -> torch.Tensor:
        import diffusers

        made, given = {
            "text": (diffusers.QwenImagePipeline, {}),
            "image": (diffusers.QwenImageImg2ImgPipeline, {"image": picture("image"), "strength": 0.7}),
            "inpaint": (diffusers.QwenImageInpaintPipeline,
                        {"image": picture("image"), "mask_image": picture("mask").convert("L"), "strength": 0.7}),
        }[case.kind]
        pipeline = made(scheduler=scheduler_of(QWEN_IMAGE), vae=self.vae.to(dtype), text_encoder=None, tokenizer=None,
                        transformer=transformer)
        pipeline.set_progress_bar_config(disable=True)
        # The first of a batch has three tokens less than the others.
        mask = torch.ones(case.batch, 9, dtype=torch.int64)
        if case.batch > 1:
            mask[0, 6:] = 0
        if case.guided:
            given |= {"negative_prompt_embeds": embeddings("negative", 4, case.batch, dtype),
                      "negative_prompt_embeds_mask": torch.ones(case.batch, 4, dtype=torch.int64)}
        return pipeline(prompt_embeds=embeddings("prompt", 9, case.batch, dtype), prompt_embeds_mask=mask, **given,
                        true_cfg_scale=SCALE if case.guided else 1.0, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS,
                        output_type="latent", generator=torch.Generator("cpu").manual_seed(SEED)).images


class DiffSynth:
    """Its pipeline, with made-up embeddings and a VAE that takes a picture for latents of its own."""

    numerics = "diffsynth"
    batches = (1,)

    def remote(self, client: ditserve.Client, dtype: torch.dtype):
        return lambda pipeline: ditserve.diffsynth.attach(pipeline, client, vram_config=vram_config(dtype), vram_limit=0)

    def run(self, case: Case, transformer, dtype: torch.dtype) -> torch.Tensor:
        from diffsynth.pipelines import qwen_image

        class Prompts(qwen_image.PipelineUnit):
            def __init__(self):
                super().__init__(take_over=True)

            def process(self, pipe, inputs_shared, inputs_posi, inputs_nega):
                for name, tokens, inputs in (("prompt", 9, inputs_posi), ("negative", 4, inputs_nega)):
                    inputs["prompt_emb"] = embeddings(name, tokens, 1, dtype)
                    inputs["prompt_emb_mask"] = torch.ones(1, tokens, dtype=torch.int64)
                return inputs_shared, inputs_posi, inputs_nega

        class Vae:
            def encode(self, image, **_):
                return torch.from_numpy(seeded(0, "image", (1, 16, HEIGHT // 8, WIDTH // 8))).to(image.dtype)

            def decode(self, latents, **_):
                return latents

        pipeline = qwen_image.QwenImagePipeline(device="cpu", torch_dtype=dtype)
        if isinstance(transformer, torch.nn.Module):
            pipeline.dit = transformer
        else:
            transformer(pipeline)
        pipeline.vae, pipeline.vae_output_to_image = Vae(), lambda latents: latents
        pipeline.units = [Prompts() if isinstance(unit, qwen_image.QwenImageUnit_PromptEmbedder) else unit
                          for unit in pipeline.units]
        given = {} if case.kind == "text" else {"input_image": picture("image"), "denoising_strength": 0.7}
        if case.kind == "inpaint":
            given["inpaint_mask"] = picture("mask")
        return pipeline(seed=SEED, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS,
                        cfg_scale=SCALE if case.guided else 1.0, progress_bar_cmd=lambda steps: steps, **given)


def moved_bytes(client: ditserve.Client) -> int:
    return sum(total.bytes for total in client.residency().transfers if total.source == "disk")


def compare(package, server: Server, references: References) -> bool:
    """Prints each case; tells whether all are within their bounds."""
    cases = [Case(*case) for case in itertools.product(KINDS, (False, True), package.batches)]
    client = ditserve.Client(server.address)
    exact, moved, sound, rounded = {}, {False: 0, True: 0}, True, {False: [], True: []}
    for dtype, dtype_name in DTYPES.items():
        model = references.load(package.numerics, dtype).model
        for case in cases:
            if not case.guided:  # So that what its timesteps alone decide is kept, with and without guidance.
                package.run(case, package.remote(client, dtype), dtype)
            local = package.run(case, model, dtype)
            before = moved_bytes(client)
            error = error_of(package.run(case, package.remote(client, dtype), dtype).float(), exact.setdefault(case, local))
            moved[case.guided] += moved_bytes(client) - before
            theirs = error_of(local.float(), exact[case])
            if dtype == torch.float32:
                sound &= error <= TOLERANCE
            else:
                rounded[case.guided].append((error, theirs))
            print(f"{package.numerics:9} {dtype_name:8}  {case!s:24} {error:.1e}"
                  + (f", the package's own {theirs:.1e}" if theirs else ""), flush=True)
    for guided, errors in rounded.items():
        ours, theirs = map(statistics.mean, zip(*errors))
        sound &= ours <= MOST_FARTHER * theirs
        print(f"{package.numerics:9} bfloat16{', guided' if guided else ''}: {ours / theirs:.2f} times the package's own")
    times = moved[True] / moved[False]
    print(f"{package.numerics:9} guidance moves {times:.2f} times the bytes")
    return sound and times <= MOST_BYTES


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True, help="folder of ditserve and ditctl")
    binaries = parser.parse_args().bin.resolve()
    sound = True
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        checkpoint = folder / "checkpoint"
        subprocess.run([binaries / "ditctl", "make-checkpoint", "--out", checkpoint, "--blocks", "1"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        references = References(checkpoint)
        for package in (Diffusers(), DiffSynth()):
            with Server(binaries, checkpoint, package.numerics, folder, "cpu") as server:
                server.await_ready()
                sound &= compare(package, server, references)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
