"""Times ditserve beside DiffSynth-Studio 2.1.12: the same checkpoint on disk, float32 arithmetic, alternating.

    python bench/peers.py --bin build/release/bin --checkpoint DIR [--sizes 256 512] [--rounds 3]

Each run is a process of its own with the page cache dropped before it. Time is that of the forward pass alone, as
DiffSynth's caller and ditserve's accounting see it; memory is the process's peak (VmHWM). Prints a table of medians and
of the ratios pair by pair.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT_TOKENS = 5
CONFIG = {"offload_dtype": "disk", "offload_device": "disk", "onload_dtype": "disk", "onload_device": "disk"}


def status_bytes(pid: int | str, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field}")


def peak_bytes(pid: int | str) -> int:
    return status_bytes(pid, "VmHWM")


def resident_bytes(pid: int | str) -> int:
    return status_bytes(pid, "VmRSS")


def drop_page_cache() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def run_diffsynth(checkpoint: Path, size: int) -> None:
    """One forward pass in this process; prints its seconds and peak bytes."""
    import torch
    from diffsynth.core import AutoWrappedLinear, AutoWrappedModule, load_model
    from diffsynth.models.qwen_image_dit import QwenImageDiT, RMSNorm

    blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
    config = CONFIG | dict.fromkeys(("preparing_dtype", "computation_dtype"), torch.float32)
    config |= dict.fromkeys(("preparing_device", "computation_device"), "cpu")
    model = load_model(
        QwenImageDiT,
        sorted(str(shard) for shard in checkpoint.glob("*.safetensors")),
        config={"num_layers": blocks},
        module_map={torch.nn.Linear: AutoWrappedLinear, RMSNorm: AutoWrappedModule},
        vram_config=config,
        vram_limit=0,
    )
    inputs = {
        "latents": torch.randn((1, 16, size // 8, size // 8)),
        "timestep": torch.zeros((1,)),
        "prompt_emb": torch.randn((1, PROMPT_TOKENS, 3584)),
        "prompt_emb_mask": torch.ones((1, PROMPT_TOKENS), dtype=torch.int64),
    }
    begun = time.monotonic()
    with torch.no_grad():
        model(**inputs, height=size, width=size)
    print(json.dumps([time.monotonic() - begun, peak_bytes("self")]))


def diffsynth(checkpoint: Path, size: int) -> list[float]:
    drop_page_cache()
    command = [sys.executable, __file__, "--worker", "--checkpoint", str(checkpoint), "--sizes", str(size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def ditserve(binaries: Path, checkpoint: Path, size: int) -> list[float]:
    drop_page_cache()
    config = CONFIG | dict.fromkeys(("preparing_dtype", "computation_dtype"), "float32")
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/socket"
        command = [binaries / "ditserve", "--listen", address, "--metrics-listen", "none", "--model", f"bench={checkpoint}", "--log-level", "warn"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            forward = [binaries / "ditctl", "forward", "--address", address, "--wait-seconds", "60", "--json"]
            forward += ["--height", str(size), "--width", str(size), "--dtype", "float32", "--vram-limit-gib", "0"]
            forward += ["--prompt-tokens", str(PROMPT_TOKENS), "--vram-config", json.dumps(config)]
            output = subprocess.run(forward, check=True, capture_output=True, text=True).stdout
            return [float(json.loads(output)["stats"]["total"].rstrip("s")), peak_bytes(server.pid)]
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run_diffsynth(arguments.checkpoint, arguments.sizes[0])
        return
    print("| size | ditserve | DiffSynth-Studio | time ratio | ditserve, peak | DiffSynth, peak | memory ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in arguments.sizes:
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            ours.append(ditserve(arguments.bin.resolve(), arguments.checkpoint, size))
            theirs.append(diffsynth(arguments.checkpoint, size))
        median = [[statistics.median(run[i] for run in runs) for i in (0, 1)] for runs in (ours, theirs)]
        ratio = [statistics.median(a[i] / b[i] for a, b in zip(ours, theirs)) for i in (0, 1)]
        print(
            f"| {size}x{size} | {median[0][0]:.1f} s | {median[1][0]:.1f} s | {ratio[0]:.2f} "
            f"| {median[0][1] / 2**30:.2f} GiB | {median[1][1] / 2**30:.2f} GiB | {ratio[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
