"""Measures the promises of the design on one machine and writes a table of them.

    python bench/measure.py --bin build/release/bin --checkpoint DIR --out bench/RESULTS.md [--rows limit riders ...]

Each figure is a ratio of two runs of this script, one after the other, on the same files. The page cache is dropped
before every run that reads them (weights are read past it anyway).
"""

import argparse
import concurrent.futures
import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peers

FLOAT32 = peers.CONFIG | dict.fromkeys(("preparing_dtype", "computation_dtype"), "float32")
RESIDENT = {key: "float32" if key.endswith("dtype") else "accelerator" for key in (
    "offload_dtype", "offload_device", "onload_dtype", "onload_device",
    "preparing_dtype", "preparing_device", "computation_dtype", "computation_device")}


class Server:
    """A ditserve process with one model."""

    def __init__(self, binaries: Path, checkpoint: Path, *flags: str):
        peers.drop_page_cache()
        self.binaries = binaries
        self.folder = tempfile.TemporaryDirectory()
        self.address = f"unix:{self.folder.name}/socket"
        self.process = subprocess.Popen(
            [binaries / "ditserve", "--listen", self.address, "--metrics-listen", "none", "--log-level", "warn",
             "--model", f"bench={checkpoint}", *flags], stdout=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def forward(self, size: int, config: dict, limit: float | None = 0) -> dict:
        command = [self.binaries / "ditctl", "forward", "--address", self.address, "--wait-seconds", "60", "--json",
                   "--height", str(size), "--width", str(size), "--dtype", "float32",
                   "--vram-config", json.dumps(config)]
        if limit is not None:
            command += ["--vram-limit-gib", str(limit)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return json.loads(output)["stats"]

    def forwards(self, count: int, size: int, config: dict, limit: float | None = 0) -> list[dict]:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.forward(size, config, limit), range(count)))

    def moved_bytes(self) -> int:
        output = subprocess.run([self.binaries / "ditctl", "residency", "--address", self.address, "--json"],
                                check=True, capture_output=True, text=True).stdout
        return int(json.loads(output)["transfers"][0]["bytes"])


def seconds(stats: dict, key: str = "total") -> float:
    return float(stats[key].rstrip("s"))


def read_every_byte(checkpoint: Path) -> float:
    """Seconds to read all shards once past the page cache, four reads in flight."""
    peers.drop_page_cache()
    piece = 4 << 20
    pieces = [(shard, at) for shard in sorted(checkpoint.glob("*.safetensors"))
              for at in range(0, shard.stat().st_size, piece)]
    files = {shard: os.open(shard, os.O_RDONLY | os.O_DIRECT) for shard in {shard for shard, _ in pieces}}

    def read(mine: list) -> None:
        buffer = mmap.mmap(-1, piece)
        for shard, at in mine:
            os.preadv(files[shard], [buffer], at)

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(read, [pieces[i::4] for i in range(4)]))
    return time.monotonic() - begun


def limit_rows(binaries: Path, checkpoint: Path):
    for size in (256, 512):
        with Server(binaries, checkpoint, "--device-budget", "80%") as server:
            server.forward(size, RESIDENT, None)
            resident = min(seconds(server.forward(size, RESIDENT, None)) for _ in range(2))
        ratios = []
        for _ in range(3):
            reading = read_every_byte(checkpoint)
            with Server(binaries, checkpoint) as server:
                taken = seconds(server.forward(size, FLOAT32))
            ratios.append((taken / max(reading, resident), taken, reading))
        ratio, taken, reading = sorted(ratios)[1]
        yield (f"forward from disk, {size}x{size}, against max(compute {resident:.2f} s, reading {reading:.2f} s)",
               f"{taken:.2f} s, {ratio:.2f}", "1.11")


def rider_rows(binaries: Path, checkpoint: Path):
    with Server(binaries, checkpoint) as server:
        one = server.forward(256, FLOAT32)
        before = server.moved_bytes()
        begun = time.monotonic()
        eight = server.forwards(8, 256, FLOAT32)
        taken = time.monotonic() - begun
        moved = server.moved_bytes() - before
    with Server(binaries, checkpoint, "--device-budget", "80%") as server:
        server.forward(256, RESIDENT, None)
        alone = min(seconds(server.forward(256, RESIDENT, None)) for _ in range(2))
    yield "8 riders against 1, disk profile: bytes moved", f"{moved / int(one['disk_read_bytes']):.2f}", "1.1"
    yield ("8 riders, disk profile: total time against 8 times the computing of one",
           f"{taken:.2f} s, {taken / (8 * alone):.2f}", "1.10")
    del eight


def budget_rows(binaries: Path, checkpoint: Path):
    model = sum(shard.stat().st_size for shard in checkpoint.glob("*.safetensors"))
    dynamic = FLOAT32
    for percent in (25, 50, 75, 100):
        # Beside the copies: activations, and the modules in flight.
        budget = model * percent // 100 + (360 << 20)
        with Server(binaries, checkpoint, "--device-budget", str(budget)) as server:
            server.forward(256, dynamic, None)
            server.forward(256, dynamic, None)
            moved = int(server.forward(256, dynamic, None)["disk_read_bytes"])
        yield (f"budget for {percent} % of the model: bytes moved",
               f"{100 * moved / model:.0f} %", f"{100 - percent} % within 5 points")


def manager_rows(binaries: Path, checkpoint: Path):
    with Server(binaries, checkpoint, "--device-budget", "80%") as server:
        server.forward(256, RESIDENT, None)
        runs = [server.forward(256, RESIDENT, None) for _ in range(5)]
    ratio = statistics.median(seconds(run) / seconds(run, "compute") for run in runs)
    yield "everything resident, 256x256: whole request against its computing alone", f"{ratio:.3f}", "1.03"


def eager_rows(binaries: Path, checkpoint: Path):
    for size in (256, 1024):
        output = subprocess.run([sys.executable, __file__, "--eager", str(size), "--checkpoint", str(checkpoint)],
                                check=True, capture_output=True, text=True).stdout
        eager = json.loads(output.strip().splitlines()[-1])
        with Server(binaries, checkpoint, "--device-budget", "80%") as server:
            server.forward(size, RESIDENT, None)
            ours = min(seconds(server.forward(size, RESIDENT, None)) for _ in range(2))
        yield (f"everything resident, float32, {size}x{size}, against the same model in eager PyTorch ({eager:.2f} s)",
               f"{ours:.2f} s, {ours / eager:.2f}", "0.75")


def run_eager(checkpoint: Path, size: int) -> None:
    """The reference in float32, all of it in memory; prints the shortest of two passes in seconds."""
    import torch
    from diffsynth.core import load_model
    from diffsynth.models.qwen_image_dit import QwenImageDiT

    blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
    shards = sorted(str(shard) for shard in checkpoint.glob("*.safetensors"))
    model = load_model(QwenImageDiT, shards, config={"num_layers": blocks}, torch_dtype=torch.float32, device="cpu")
    inputs = {"latents": torch.randn((1, 16, size // 8, size // 8)), "timestep": torch.zeros((1,)),
              "prompt_emb": torch.randn((1, 5, 3584)), "prompt_emb_mask": torch.ones((1, 5), dtype=torch.int64)}
    times = []
    with torch.no_grad():
        for _ in range(3):
            begun = time.monotonic()
            model(**inputs, height=size, width=size)
            times.append(time.monotonic() - begun)
    print(json.dumps(min(times[1:])))


def peer_rows(binaries: Path, checkpoint: Path):
    for size, rounds, target in ((256, 3, 0.40), (512, 2, None), (1024, 1, 0.70)):
        pairs = [(peers.ditserve(binaries, checkpoint, size), peers.diffsynth(checkpoint, size)) for _ in range(rounds)]
        taken, memory = (statistics.median(ours[i] / theirs[i] for ours, theirs in pairs) for i in (0, 1))
        ours, theirs = pairs[-1]
        yield (f"disk profile, {size}x{size}, against DiffSynth-Studio 2.1.12 ({theirs[0]:.1f} s, "
               f"{theirs[1] / 2**30:.1f} GiB): time", f"{ours[0]:.1f} s, {taken:.2f}", f"{target:.2f}" if target else "")
        yield f"the same: peak memory ({ours[1] / 2**30:.2f} GiB)", f"{memory:.2f}", "0.40" if size == 256 else ""


def overhead_rows(binaries: Path, checkpoint: Path):
    with Server(binaries, checkpoint, "--device-budget", "80%") as server:
        server.forward(16, RESIDENT, None)
        begun = time.monotonic()
        runs = server.forwards(64, 16, RESIDENT, None)
        taken = time.monotonic() - begun
    times = sorted(seconds(run) for run in runs)
    yield ("64 requests at once, 16x16, everything resident: rate and 99th percentile",
           f"{64 / taken:.1f}/s, {times[63]:.2f} s, {64 - len(runs)} errors", "reported")


def link_rows(binaries: Path, _: Path):
    output = subprocess.run([binaries / "bench_simulated_link"], check=True, capture_output=True, text=True).stdout
    for line in output.splitlines()[2:]:
        ratio, riders, taken, limit, against = (cell.strip() for cell in line.strip("|").split("|"))
        yield (f"simulated link, moving {ratio} x computing, {riders} rider(s), against the limit of {limit}",
               f"{taken}, {against}", "1.10")


ROWS = {"limit": limit_rows, "eager": eager_rows, "peers": peer_rows, "riders": rider_rows, "budgets": budget_rows,
        "manager": manager_rows, "link": link_rows, "overhead": overhead_rows}


def machine() -> str:
    model = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB of memory, {platform.system()} {platform.release()}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--eager", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.eager:
        run_eager(arguments.checkpoint, arguments.eager)
        return
    blocks = json.loads((arguments.checkpoint / "config.json").read_text())["num_layers"]
    lines = ["# What was measured", "",
             f"By `make bench`, on {machine()}; a seeded checkpoint of {blocks} blocks, float32 arithmetic from bfloat16",
             "storage, 5 prompt tokens. Times are of the forward pass as the server accounts for it.", "",
             "| what | measured | target |", "| --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    for name in arguments.rows:
        for row in ROWS[name](arguments.bin.resolve(), arguments.checkpoint):
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
