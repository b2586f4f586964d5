"""Compares denoising loops with a step cache of a running ditserve with diffusers' pipeline and the same cache.

    python scripts/parity/live_step_cache.py --bin build/release/bin [--steps 12] [--blocks 2]

First Block Cache is diffusers' own hook. TeaCache, which neither installed pipeline has for Qwen-Image, is the published
rule, here around the pipeline's blocks. For each threshold, with and without guidance, prints at which steps each branch
was reused, in both; the largest difference of the latents from the pipeline's with that cache, relative to their largest
magnitude, in float32; and from those without a cache: what it costs. Exits with 1 if other steps were reused, or if the
first difference is above 1e-4.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

from live import Server, error_of
from live_denoise import command_of, with_diffusers
from references import References

# Of TeaCache for Qwen-Image, highest power first.
COEFFICIENTS = [-450, 280, -45, 3.2, -0.02]


def damp(checkpoint: Path, factor: float) -> None:
    """Has the timestep say less: of made-up weights it changes everything at each step, of trained ones little."""
    name = "time_text_embed.timestep_embedder.linear_2.weight"
    index = json.loads(next(checkpoint.glob("*.index.json")).read_text())
    shard = checkpoint / index["weight_map"][name]
    tensors = load_file(shard)
    tensors[name] = tensors[name] * factor
    save_file(tensors, shard)


class FirstBlock:
    """diffusers' First Block Cache on a model, as long as the context lasts."""

    def __init__(self, model: torch.nn.Module, threshold: float, guided: bool):
        from diffusers.hooks import FirstBlockCacheConfig
        from diffusers.hooks.first_block_cache import FBCHeadBlockHook

        self.model, self.config, self.hook, self.reused = model, FirstBlockCacheConfig(threshold=threshold), FBCHeadBlockHook, []
        self.decide = FBCHeadBlockHook._should_compute_remaining_blocks

    def __enter__(self) -> "FirstBlock":
        def noted(hook, residual):
            computes = self.decide(hook, residual)
            self.reused.append(not computes)
            return computes

        self.hook._should_compute_remaining_blocks = noted
        self.model.enable_cache(self.config)
        return self

    def __exit__(self, *_: object) -> None:
        self.model.disable_cache()
        self.hook._should_compute_remaining_blocks = self.decide


class Tea(torch.nn.Module):
    """TeaCache in the place of a model's blocks, as long as the context lasts."""

    def __init__(self, model: torch.nn.Module, threshold: float, guided: bool):
        super().__init__()
        self.blocks, self.threshold, self.reused = model.transformer_blocks, threshold, []
        self.branches, self.states = 2 if guided else 1, {}
        self.__dict__["model"] = model

    def __enter__(self) -> "Tea":
        self.model.transformer_blocks = torch.nn.ModuleList([self])
        return self

    def __exit__(self, *_: object) -> None:
        self.model.transformer_blocks = self.blocks

    def is_near(self, state: dict, signal: torch.Tensor) -> bool:
        before, state["signal"] = state.get("signal"), signal
        if before is None:
            return False
        difference = ((signal - before).abs().mean() / (before.abs().mean() + 1e-8)).item()
        value = 0.0
        for coefficient in COEFFICIENTS:
            value = value * difference + coefficient
        state["sum"] = state.get("sum", 0.0) + abs(value)
        if state["sum"] < self.threshold:
            return True
        state["sum"] = 0.0
        return False

    def forward(self, hidden_states, encoder_hidden_states, temb, **rest):
        state = self.states.setdefault(len(self.reused) % self.branches, {})
        first = self.blocks[0]
        modulation = first.img_mod(temb).chunk(2, dim=-1)[0]
        signal = first._modulate(first.img_norm1(hidden_states), modulation)[0]
        self.reused.append(self.is_near(state, signal))
        if self.reused[-1]:
            return encoder_hidden_states, hidden_states + state["residual"]
        image, text = hidden_states, encoder_hidden_states
        for block in self.blocks:
            text, image = block(hidden_states=image, encoder_hidden_states=text, temb=temb, **rest)
        state["residual"] = image - hidden_states
        return text, image


def with_server(server: Server, steps: int, guided: bool, flags: list[str]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Latents, and for each step whether it was reused for the prompt and for the negative one."""
    output = server.folder / "latents.safetensors"
    told = subprocess.run([*command_of(server, steps, guided), "--json", *flags, "--output", output], check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    reused = {step["step"]: (step["images"], step["negative_images"]) for step in json.loads(told)["reused_steps"]}
    return load_file(output)["latents"], [reused.get(step, (0, 0)) for step in range(steps)]


def pattern(reused: list[tuple[int, int]]) -> str:
    """A character a step: computed, reused for the prompt, for the negative one, for both."""
    return "".join(".pnb"[prompt + 2 * negative] for prompt, negative in reused)


def compare(server: Server, model: torch.nn.Module, kind: type, threshold: float, steps: int, guided: bool, exact: torch.Tensor) -> bool:
    name = "first-block" if kind is FirstBlock else "tea"
    flags = ["--step-cache", f"{name}:{threshold}"]
    if kind is Tea:
        flags += ["--tea-coefficients=" + ",".join(map(str, COEFFICIENTS))]
    with kind(model, threshold, guided) as cache:
        expected = with_diffusers(model, steps, guided)
    branches = cache.reused if not guided else list(zip(cache.reused[::2], cache.reused[1::2]))
    theirs = [(int(each[0]), int(each[1])) if guided else (int(each), 0) for each in branches]
    latents, ours = with_server(server, steps, guided, flags)
    error = error_of(latents, expected)
    print(f"{name:11}  {threshold:<5}  {steps:3} steps  {'guided' if guided else 'plain':6}  {pattern(ours)}  {error:.1e}; "
          f"without a cache {error_of(latents, exact):.1e}", flush=True)
    if ours != theirs:
        print(f"  diffusers: {pattern(theirs)}")
    return ours == theirs and error <= 1e-4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[12])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--damping", type=float, default=0.02)
    parser.add_argument("--first-block", type=float, nargs="*", default=[0.2, 0.3])
    parser.add_argument("--tea", type=float, nargs="*", default=[0.1, 0.2])
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    sound = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = folder / "checkpoint"
        subprocess.run([arguments.bin / "ditctl", "make-checkpoint", "--out", checkpoint, "--blocks", str(arguments.blocks)],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        damp(checkpoint, arguments.damping)
        model = References(checkpoint).load("diffusers", torch.float32).model
        with Server(arguments.bin, checkpoint, "diffusers", folder, "cpu") as server, torch.no_grad():
            subprocess.run([arguments.bin / "ditctl", "forward", "--address", server.address, "--wait-seconds", "60",
                            "--height", "16", "--width", "16"], check=True, stdout=subprocess.DEVNULL)
            for steps in arguments.steps:
                for guided in (False, True):
                    exact, _ = with_server(server, steps, guided, [])
                    for kind, thresholds in ((FirstBlock, arguments.first_block), (Tea, arguments.tea)):
                        for threshold in thresholds:
                            sound &= compare(server, model, kind, threshold, steps, guided, exact)
    sys.exit(not sound)


if __name__ == "__main__":
    main()
