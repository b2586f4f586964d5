"""Compares a running ditserve with the installed DiffSynth-Studio and diffusers, case by case.

    python scripts/parity/live.py --bin build/release/bin [--device cuda:0]

Starts a server for each checkpoint and implementation, sends every case through ditctl and prints the largest error,
relative to the output's largest magnitude, in float32; the references compute on the CPU. Exits with 1 if one is above
1e-5; of a GPU, 1e-4. On a GPU some cases are computed in bfloat16 too, with weights as they are and rounded to float8,
there by DiffSynth-Studio as well: both are compared with the CPU in float32. Exits with 1 if ours is more than twice as
far from it.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cases import CASES, NUMERICS, Case
from references import References, runs

FLOAT32 = '{"computation_dtype": "float32", "offload_dtype": "disk", "onload_dtype": "disk"}'
# By the dtype that weights are rounded to.
BFLOAT16 = {
    torch.bfloat16: '{"computation_dtype": "bfloat16", "offload_dtype": "disk", "onload_dtype": "disk"}',
    torch.float8_e4m3fn: '{"computation_dtype": "bfloat16", "preparing_dtype": "bfloat16", "preparing_device": '
                         '"accelerator", "offload_dtype": "float8_e4m3fn", "offload_device": "cpu", '
                         '"onload_dtype": "float8_e4m3fn", "onload_device": "cpu"}',
}


class Server:
    """A ditserve on a Unix socket in `folder`, as long as the context lasts."""

    def __init__(self, binaries: Path, checkpoint: Path, numerics: str, folder: Path, device: str):
        self.binaries, self.folder = binaries, folder
        self.address = f"unix:{folder}/socket"
        model = f"parity={checkpoint},numerics={numerics}"
        self.command = [binaries / "ditserve", "--listen", self.address, "--admin-listen", "none", "--metrics-listen",
                        "none", "--model", model, "--log-level", "warn", "--device", device]

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def await_ready(self) -> None:
        subprocess.run([self.binaries / "ditctl", "forward", "--address", self.address, "--wait-seconds", "60",
                        "--height", "16", "--width", "16"], check=True, stdout=subprocess.DEVNULL)

    def run(self, case: Case, config: str = FLOAT32) -> torch.Tensor:
        inputs, output = self.folder / "inputs.safetensors", self.folder / "output.safetensors"
        tensors = {
            "latents": torch.from_numpy(case.latents()),
            "timestep": torch.full((len(case.lengths),), case.timestep),
            "prompt_emb": torch.from_numpy(case.prompt_emb()),
            "prompt_emb_mask": torch.from_numpy(case.mask()),
        }
        save_file(tensors, str(inputs))
        sizes = ["--height", str(case.height), "--width", str(case.width)]
        files = ["--inputs", str(inputs), "--output", str(output)]
        subprocess.run(
            [self.binaries / "ditctl", "forward", "--address", self.address, "--wait-seconds", "60"]
            + ["--vram-config", config, *sizes, *files],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return load_file(output)["output"]


def error_of(output: torch.Tensor, expected: torch.Tensor) -> float:
    return ((output - expected).abs().max() / expected.abs().max()).item()


def compare_float32(server: Server, references: References, numerics: str, cases: list[Case]) -> float:
    """The largest error."""
    reference = references.load(numerics, torch.float32)
    worst = 0.0
    for case in cases:
        error = error_of(server.run(case), reference.run(case))
        worst = max(worst, error)
        print(f"{case.name:18} {numerics:10} {error:.2e}", flush=True)
    return worst


def compare_bfloat16(server: Server, references: References, cases: list[Case], device: str) -> float:
    """The largest ratio of our distance from float32 to DiffSynth's."""
    worst = 0.0
    for rounded, config in BFLOAT16.items():
        exact = references.load("diffsynth", torch.float32, through=rounded)
        theirs = references.load("diffsynth", torch.bfloat16, through=rounded, device=device)
        for case in cases:
            expected = exact.run(case)
            ours, other = error_of(server.run(case, config), expected), error_of(theirs.run(case), expected)
            worst = max(worst, ours / other)
            print(f"{case.name:18} bfloat16, weights {str(rounded).removeprefix('torch.'):14} ours {ours:.2e}, "
                  f"DiffSynth's {other:.2e}", flush=True)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True, help="folder of ditserve and ditctl")
    parser.add_argument("--device", default="cpu", help="what the server computes on")
    arguments = parser.parse_args()
    binaries, device = arguments.bin.resolve(), arguments.device
    tolerance = 1e-5 if device == "cpu" else 1e-4
    worst = farther = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for blocks in (1, 2):
            checkpoint = folder / f"blocks-{blocks}"
            command = [binaries / "ditctl", "make-checkpoint", "--blocks", str(blocks), "--out", str(checkpoint)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            references = References(checkpoint)
            for numerics in NUMERICS:
                cases = [case for case in CASES if case.blocks == blocks and runs(case, numerics)]
                with Server(binaries, checkpoint, numerics, folder, device) as server:
                    worst = max(worst, compare_float32(server, references, numerics, cases))
                    if device != "cpu" and numerics == "diffsynth":
                        cases = [case for case in cases if case.bfloat16]
                        farther = max(farther, compare_bfloat16(server, references, cases, device))
    print(f"largest error in float32 {worst:.2e}, tolerance {tolerance:.0e}")
    if farther:
        print(f"farthest from float32 in bfloat16: {farther:.2f} times as far as DiffSynth's, tolerance 2")
    return 0 if worst <= tolerance and farther <= 2 else 1


if __name__ == "__main__":
    sys.exit(main())
