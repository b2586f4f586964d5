"""One forward pass of ditserve, and one of DiffSynth-Studio 2.1.12, or its pipeline's loop: the same checkpoint on disk,
float32 arithmetic.

    python bench/peers.py CHECKPOINT SIZE GUIDED_STEPS

Each runs in a process of its own with the page cache dropped before it. Time is that of the passes alone, as
DiffSynth's caller and ditserve's accounting see it; memory is the process's peak (VmHWM). The program is DiffSynth's
process; it prints its seconds and peak bytes.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT_TOKENS = 5
CONFIG = {"offload_dtype": "disk", "offload_device": "disk", "onload_dtype": "disk", "onload_device": "disk"}


def no_other_ports(binaries: Path) -> list[str]:
    """Flags of a server that listens for what is measured alone. Earlier builds have fewer ports, and flags."""
    flags = subprocess.run([binaries / "ditserve", "--help"], check=True, capture_output=True, text=True).stdout
    return [word for flag in ("--admin-listen", "--metrics-listen") if flag in flags for word in (flag, "none")]


def status_bytes(pid: int | str, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field}")


def peak_bytes(pid: int | str) -> int:
    return status_bytes(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """From here on its peak begins with what it has."""
    Path(f"/proc/{pid}/clear_refs").write_text("5\n")


def resident_bytes(pid: int | str) -> int:
    return status_bytes(pid, "VmRSS")


def drop_page_cache() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def run_diffsynth(checkpoint: Path, size: int, steps: int) -> None:
    """One forward pass of DiffSynth's in this process, or, where `steps` is not 0, so many steps with guidance."""
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
        if steps:
            sys.path.insert(0, str(Path(__file__).parent.parent / "scripts/parity"))
            from live_denoise import with_diffsynth
            with_diffsynth(model, steps, True, size, size)
        else:
            model(**inputs, height=size, width=size)
    print(json.dumps([time.monotonic() - begun, peak_bytes("self")]))


def diffsynth(checkpoint: Path, size: int, steps: int = 0) -> list[float]:
    drop_page_cache()
    command = [sys.executable, __file__, str(checkpoint), str(size), str(steps)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def ditserve(binaries: Path, checkpoint: Path, size: int) -> tuple[dict, int]:
    """The pass as the server accounts for it, and the peak of the process in bytes."""
    drop_page_cache()
    config = CONFIG | dict.fromkeys(("preparing_dtype", "computation_dtype"), "float32")
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/socket"
        command = [binaries / "ditserve", "--listen", address, *no_other_ports(binaries), "--log-level", "warn",
                   "--model", f"bench={checkpoint}"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            forward = [binaries / "ditctl", "forward", "--address", address, "--wait-seconds", "60", "--json"]
            forward += ["--height", str(size), "--width", str(size), "--dtype", "float32", "--vram-limit-gib", "0"]
            forward += ["--prompt-tokens", str(PROMPT_TOKENS), "--vram-config", json.dumps(config)]
            output = subprocess.run(forward, check=True, capture_output=True, text=True).stdout
            return json.loads(output)["stats"], peak_bytes(server.pid)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    run_diffsynth(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
