"""Measures the promises of the design on one machine and writes a table of them.

    python bench/measure.py --bin build/release/bin --checkpoint DIR [--full DIR] [--out FILE] [--rows limit riders ...]

Each ratio is of runs of this script that took turns on the same files. The page cache is dropped before every run that
reads them (ditserve reads past it anyway). Needs root for that, and the packages of scripts/parity/requirements.txt.
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

DISK = peers.CONFIG | dict.fromkeys(("preparing_dtype", "computation_dtype"), "float32")
RESIDENT = {key: "float32" if key.endswith("dtype") else "accelerator" for key in (
    "offload_dtype", "offload_device", "onload_dtype", "onload_device",
    "preparing_dtype", "preparing_device", "computation_dtype", "computation_device")}
UNLIMITED = None

# DiffSynth-Studio 2.1.12 with 60 blocks, disk offload, float32, on 2 cores of an x86-64 without AVX-512: seconds, GB.
DIFFSYNTH_FULL = {256: (157, 3.2), 1024: (878, 3.8)}


class Server:
    """A ditserve process with one model."""

    def __init__(self, binaries: Path, checkpoint: Path, *flags: str):
        peers.drop_page_cache()
        self.binaries = binaries
        self.folder = tempfile.TemporaryDirectory()
        self.address = f"unix:{self.folder.name}/socket"
        self.process = subprocess.Popen(
            [binaries / "ditserve", "--listen", self.address, "--metrics-listen", "none", "--log-level", "warn",
             "--model", f"bench={checkpoint}", *flags], stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()  # It serves.

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def call(self, command: str, *arguments: str) -> dict:
        output = subprocess.run([self.binaries / "ditctl", command, "--address", self.address, "--json", *arguments],
                                check=True, capture_output=True, text=True).stdout
        return json.loads(output)

    def forward(self, size: int, config: dict, limit: float | None = 0) -> dict:
        arguments = ["--height", str(size), "--width", str(size), "--dtype", "float32",
                     "--vram-config", json.dumps(config)]
        if limit is not UNLIMITED:
            arguments += ["--vram-limit-gib", str(limit)]
        return self.call("forward", *arguments)["stats"]

    def forwards(self, count: int, size: int, config: dict, limit: float | None = 0) -> list[dict]:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.forward(size, config, limit), range(count)))

    def moved_bytes(self) -> int:
        return int(self.call("residency")["transfers"][0]["bytes"])

    def ledger_peak_bytes(self) -> int:
        return sum(int(memory["peak_bytes"]) for memory in self.call("residency")["memories"])


class ResidentServer(Server):
    """A server that has the whole model in memory."""

    def __init__(self, binaries: Path, checkpoint: Path):
        super().__init__(binaries, checkpoint, "--device-budget", "60%")
        self.forward(256, RESIDENT, UNLIMITED)

    def seconds(self, size: int) -> float:
        return seconds(self.forward(size, RESIDENT, UNLIMITED))


def seconds(stats: dict, key: str = "total") -> float:
    return float(stats[key].rstrip("s"))


def read_every_byte(checkpoint: Path) -> float:
    """Seconds to read all shards once past the page cache: with one read in flight or four, whichever is faster."""
    return min(read_with(checkpoint, threads) for threads in (1, 4))


def read_with(checkpoint: Path, threads: int) -> float:
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
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, [pieces[i::threads] for i in range(threads)]))
    taken = time.monotonic() - begun
    for file in files.values():
        os.close(file)
    return taken


def limit_rows(binaries: Path, checkpoint: Path):
    with ResidentServer(binaries, checkpoint) as resident:
        for size in (256, 512):
            cold, warm = [], []
            for _ in range(3):
                limit = max(read_every_byte(checkpoint), resident.seconds(size))
                with Server(binaries, checkpoint) as server:
                    cold.append(seconds(server.forward(size, DISK)) / limit)
                    warm.append(seconds(server.forward(size, DISK)) / limit)
            yield (f"forward from disk, {size}x{size}, against max(compute with all resident, reading each byte once): "
                   "second request of a server", f"{statistics.median(warm):.2f}", "1.11")
            yield "the same: first request", f"{statistics.median(cold):.2f}", "1.11"


def eager_rows(binaries: Path, checkpoint: Path):
    for size in (256, 1024):
        with ResidentServer(binaries, checkpoint) as server:
            ours = [server.seconds(size)]
            output = subprocess.run([sys.executable, __file__, "--eager", str(size), "--checkpoint", str(checkpoint)],
                                    check=True, capture_output=True, text=True).stdout
            eager = json.loads(output.strip().splitlines()[-1])
            ours.append(server.seconds(size))
        yield (f"everything resident, float32, {size}x{size}, against eager PyTorch ({eager:.2f} s)",
               f"{min(ours):.2f} s, {min(ours) / eager:.2f}", "0.75")


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
        ratios = [statistics.median(ours[i] / theirs[i] for ours, theirs in pairs) for i in (0, 1)]
        ours, theirs = pairs[-1]
        yield (f"disk profile, {size}x{size}, against DiffSynth-Studio 2.1.12 ({theirs[0]:.1f} s): time",
               f"{ours[0]:.1f} s, {ratios[0]:.2f}", f"{target:.2f}" if target else "")
        yield (f"the same: peak memory of the process ({theirs[1] / 2**30:.2f} GiB)",
               f"{ours[1] / 2**30:.2f} GiB, {ratios[1]:.2f}", "0.40" if size == 256 else "")


def full_rows(binaries: Path, checkpoint: Path):
    for size, (their_seconds, their_gigabytes) in DIFFSYNTH_FULL.items():
        reading = read_every_byte(checkpoint)
        taken, peak = peers.ditserve(binaries, checkpoint, size)
        yield (f"60 blocks, disk profile, {size}x{size}, against DiffSynth-Studio's {their_seconds} s on such a machine "
               f"(reading each byte once: {reading:.1f} s)", f"{taken:.1f} s, {taken / their_seconds:.2f}",
               "0.40" if size == 256 else "0.70")
        yield (f"the same: peak memory of the process, against {their_gigabytes} GB and 2 GiB",
               f"{peak / 2**30:.2f} GiB, {peak / 1e9 / their_gigabytes:.2f}", "2 GiB")


def rider_rows(binaries: Path, checkpoint: Path):
    with ResidentServer(binaries, checkpoint) as resident, Server(binaries, checkpoint) as server:
        one = server.forward(256, DISK)
        alone = [resident.seconds(256)]
        before = server.moved_bytes()
        begun = time.monotonic()
        server.forwards(8, 256, DISK)
        taken = time.monotonic() - begun
        moved = server.moved_bytes() - before
        alone.append(resident.seconds(256))
    yield "8 riders against 1, disk profile: bytes moved", f"{moved / int(one['disk_read_bytes']):.2f}", "1.1"
    yield ("8 riders, disk profile: total time against 8 times the computing of one",
           f"{taken:.2f} s, {taken / (8 * statistics.mean(alone)):.2f}", "1.10")


def budget_rows(binaries: Path, checkpoint: Path):
    model = sum(shard.stat().st_size for shard in checkpoint.glob("*.safetensors"))
    with Server(binaries, checkpoint) as server:
        beside = int(server.forward(256, DISK)["peak_device_bytes"])  # Activations and the streaming window.
    for percent in (25, 50, 75, 100):
        budget = model * percent // 100 + beside
        with Server(binaries, checkpoint, "--device-budget", str(budget)) as server:
            server.forward(256, DISK, UNLIMITED)
            moved = int(server.forward(256, DISK, UNLIMITED)["disk_read_bytes"])
        yield (f"budget for {percent} % of the model, and for what streams the rest: bytes moved",
               f"{100 * moved / model:.0f} %", f"{100 - percent} % within 5 points")


def ledger_rows(binaries: Path, checkpoint: Path):
    for name, size, config, limit in (("disk", 1024, DISK, 0), ("everything resident", 256, RESIDENT, UNLIMITED)):
        with Server(binaries, checkpoint, "--device-budget", "60%") as server:
            before = peers.resident_bytes(server.process.pid)
            server.forward(size, config, limit)
            grown = peers.peak_bytes(server.process.pid) - before
            ledger = server.ledger_peak_bytes()
        yield (f"{name}, {size}x{size}: growth of the process against the ledger's peak ({ledger / 2**20:.0f} MiB)",
               f"{grown / 2**20:.0f} MiB, {grown / ledger:.3f}", "1.02")


def manager_rows(binaries: Path, checkpoint: Path):
    output = subprocess.run([binaries / "bench_manager_overhead", checkpoint, "256", "7"], check=True,
                            capture_output=True, text=True).stdout
    ratio = statistics.median(float(a) / float(b) for a, b in (line.split() for line in output.splitlines()))
    yield "everything resident, 256x256: served against weights that simply lie in memory", f"{ratio:.3f}", "1.03"


def link_rows(binaries: Path, _: Path):
    output = subprocess.run([binaries / "bench_simulated_link"], check=True, capture_output=True, text=True).stdout
    for line in output.splitlines()[2:]:
        ratio, riders, taken, limit, against = (cell.strip() for cell in line.strip("|").split("|"))
        yield (f"simulated link, moving {ratio} x computing, {riders} rider(s), against the limit of {limit}",
               f"{taken}, {against}", "1.10")


def overhead_rows(binaries: Path, _: Path):
    output = subprocess.run([binaries / "bench_request_overhead"], check=True, capture_output=True, text=True).stdout
    requests, errors, rate, median, last = output.split()
    yield (f"tiny model, 64 clients at once, {requests} requests: rate, median, 99th percentile, errors",
           f"{rate}/s, {median} ms, {last} ms, {errors}", "0 errors")


ROWS = {"limit": limit_rows, "eager": eager_rows, "peers": peer_rows, "riders": rider_rows, "budgets": budget_rows,
        "ledger": ledger_rows, "manager": manager_rows, "link": link_rows, "overhead": overhead_rows}


def machine() -> str:
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    wide = "with AVX-512" if "avx512f" in facts["flags"] else "without AVX-512"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (f"{os.cpu_count()} cores of {facts['model name']} (family {facts['cpu family']}, model {facts['model']}, "
            f"{wide}), {memory:.0f} GiB of memory, {platform.system()} {platform.release()}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--full", type=Path, help="a checkpoint of 60 blocks")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--eager", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.eager:
        run_eager(arguments.checkpoint, arguments.eager)
        return
    blocks = json.loads((arguments.checkpoint / "config.json").read_text())["num_layers"]
    lines = ["# What was measured", "",
             f"By `make bench`, on {machine()}. A seeded checkpoint of {blocks} blocks in bfloat16, float32 arithmetic, 5 "
             "prompt tokens, where nothing else is said. Times are of the forward pass as the server accounts for it; "
             "ratios are medians of runs that took turns. Lower is better.", "",
             "| what | measured | target |", "| --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    rows = [(ROWS[name], arguments.checkpoint) for name in arguments.rows]
    if arguments.full:
        rows.append((full_rows, arguments.full))
    for measure, checkpoint in rows:
        for row in measure(arguments.bin.resolve(), checkpoint):
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
