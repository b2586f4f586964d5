"""Compares a running ditserve with the installed DiffSynth-Studio and diffusers, case by case.

    python scripts/parity/live.py --bin build/release/bin

Starts a server for each checkpoint and implementation, sends every case through ditctl and prints the largest error,
relative to the output's largest magnitude. Exits with 1 if one is above 1e-5.
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

TOLERANCE = 1e-5
FLOAT32 = '{"computation_dtype": "float32", "offload_dtype": "disk", "onload_dtype": "disk"}'


class Server:
    """A ditserve on a Unix socket in `folder`, as long as the context lasts."""

    def __init__(self, binaries: Path, checkpoint: Path, numerics: str, folder: Path):
        self.binaries, self.folder = binaries, folder
        self.address = f"unix:{folder}/socket"
        model = f"parity={checkpoint},numerics={numerics}"
        self.command = [binaries / "ditserve", "--listen", self.address, "--admin-listen", "none", "--metrics-listen", "none", "--model", model, "--log-level", "warn"]

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def run(self, case: Case) -> torch.Tensor:
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
            + ["--vram-config", FLOAT32, *sizes, *files],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return load_file(output)["output"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True, help="folder of ditserve and ditctl")
    binaries = parser.parse_args().bin.resolve()
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for blocks in (1, 2):
            checkpoint = folder / f"blocks-{blocks}"
            command = [binaries / "ditctl", "make-checkpoint", "--blocks", str(blocks), "--out", str(checkpoint)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            for numerics in NUMERICS:
                reference = References(checkpoint).load(numerics, torch.float32)
                with Server(binaries, checkpoint, numerics, folder) as server:
                    for case in CASES:
                        if case.blocks != blocks or not runs(case, numerics):
                            continue
                        expected = reference.run(case)
                        error = ((server.run(case) - expected).abs().max() / expected.abs().max()).item()
                        worst = max(worst, error)
                        print(f"{case.name:18} {numerics:10} {error:.2e}", flush=True)
                del reference
    print(f"largest error {worst:.2e}, tolerance {TOLERANCE:.0e}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
