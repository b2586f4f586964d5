"""What bench/measure.py measures: each promise's rows, ours and what they are held against."""

import concurrent.futures
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import peers

DISK = peers.CONFIG | dict.fromkeys(("preparing_dtype", "computation_dtype"), "float32")
RESIDENT = {key: "float32" if key.endswith("dtype") else "accelerator" for key in (
    "offload_dtype", "offload_device", "onload_dtype", "onload_device",
    "preparing_dtype", "preparing_device", "computation_dtype", "computation_device")}
UNLIMITED = None
RIDERS = 8


class Server:
    """A ditserve process with one model, all of it on disk; it serves once this is made."""

    def __init__(self, binaries: Path, checkpoint: Path, *flags: str):
        peers.drop_page_cache()
        self.binaries = binaries
        self.folder = tempfile.TemporaryDirectory()
        self.address = f"unix:{self.folder.name}/socket"
        self.process = subprocess.Popen(
            [binaries / "ditserve", "--listen", self.address, "--metrics-listen", "none", "--log-level", "warn",
             "--model", f"bench={checkpoint}", *flags], stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate()
        self.folder.cleanup()

    def call(self, command: str, *arguments: str) -> dict:
        output = subprocess.run([self.binaries / "ditctl", command, "--address", self.address, "--json", *arguments],
                                check=True, capture_output=True, text=True).stdout
        return json.loads(output)

    def forward(self, size: int, config: dict, limit: float | None = 0) -> dict:
        arguments = ["--height", str(size), "--width", str(size), "--dtype", "float32",
                     "--prompt-tokens", str(peers.PROMPT_TOKENS), "--vram-config", json.dumps(config)]
        if limit is not UNLIMITED:
            arguments += ["--vram-limit-gib", str(limit)]
        return self.call("forward", *arguments)["stats"]

    def moved_bytes(self) -> int:
        return int(self.call("residency")["transfers"][0]["bytes"])

    def ledger_peak_bytes(self) -> int:
        return sum(int(memory["peak_bytes"]) for memory in self.call("residency")["memories"])


def seconds(stats: dict) -> float:
    return float(stats["total"].rstrip("s"))


def resident_seconds(binaries: Path, checkpoint: Path, size: int) -> float:
    """A pass with every weight in memory since the pass before it."""
    with Server(binaries, checkpoint, "--device-budget", "60%") as server:
        server.forward(256, RESIDENT, UNLIMITED)
        return seconds(server.forward(size, RESIDENT, UNLIMITED))


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


def run_eager(checkpoint: Path, size: int) -> None:
    """The reference in float32, all of it in memory; prints the seconds of its second pass."""
    import torch
    from diffsynth.core import load_model
    from diffsynth.models.qwen_image_dit import QwenImageDiT

    blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
    shards = sorted(str(shard) for shard in checkpoint.glob("*.safetensors"))
    model = load_model(QwenImageDiT, shards, config={"num_layers": blocks}, torch_dtype=torch.float32, device="cpu")
    tokens = peers.PROMPT_TOKENS
    inputs = {"latents": torch.randn((1, 16, size // 8, size // 8)), "timestep": torch.zeros((1,)),
              "prompt_emb": torch.randn((1, tokens, 3584)),
              "prompt_emb_mask": torch.ones((1, tokens), dtype=torch.int64)}
    with torch.no_grad():
        for _ in range(2):
            begun = time.monotonic()
            model(**inputs, height=size, width=size)
            taken = time.monotonic() - begun
    print(json.dumps(taken))


@dataclass
class Row:
    what: str
    resident: str  # Which weights are in memory as it begins.
    unit: str
    against: str = ""  # What `theirs` is; "" for nothing.
    target: tuple[float, float] | None = None  # Of ours / theirs.


class Measure:
    """Rows that one turn gives the values of. Less is better in every one."""

    rounds = 3
    sizes = (0,)  # Pixels a side; 0: not of one size.

    def __init__(self, checkpoint: Path, _size: int = 0):
        self.checkpoint = checkpoint
        self.rows: list[Row] = []
        self.limits: list[str] = []  # What limited each round, where that is known.

    def ours(self, binaries: Path) -> list[float]:
        raise NotImplementedError

    def theirs(self, binaries: Path) -> list[float]:
        raise NotImplementedError

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        """A turn of each."""
        return self.ours(binaries), self.theirs(binaries)


class Limit(Measure):
    """From disk, against what no server could beat."""

    rounds = 5  # The disk is not steady.
    sizes = (256, 512)

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint)
        self.size = size
        against = "the longer of reading each byte once and computing with all resident"
        self.rows = [Row(f"disk profile, {size}x{size}, a server's {which} request", "nothing", "s", against, (0, 1.11))
                     for which in ("second", "first")]

    def ours(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server:
            first = seconds(server.forward(self.size, DISK))
            return [seconds(server.forward(self.size, DISK)), first]

    def theirs(self, binaries: Path) -> list[float]:
        reading = read_every_byte(self.checkpoint)
        computing = resident_seconds(binaries, self.checkpoint, self.size)
        self.limits.append("the disk" if reading > computing else "computing")
        return [max(reading, computing)] * 2


class Eager(Measure):
    sizes = (256, 1024)

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint)
        self.size = size
        self.rows = [Row(f"float32, {size}x{size}", "everything", "s", "eager PyTorch", (0, 0.75))]

    def ours(self, binaries: Path) -> list[float]:
        self.limits.append("computing")
        return [resident_seconds(binaries, self.checkpoint, self.size)]

    def theirs(self, _: Path) -> list[float]:
        command = [sys.executable, __file__, str(self.checkpoint), str(self.size)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [json.loads(output.strip().splitlines()[-1])]


class Peer(Measure):
    sizes = (256, 512, 1024)

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint)
        self.size = size
        blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
        what = f"{blocks} blocks, disk profile, float32, {size}x{size}"
        against = "DiffSynth-Studio 2.1.12"
        self.rows = [Row(what, "nothing", "s", against, (0, 0.40 if size == 256 else 0.65)),
                     Row(f"{what}: peak of the process", "nothing", "MiB", against, (0, 0.40))]

    def ours(self, binaries: Path) -> list[float]:
        taken, peak = peers.ditserve(binaries, self.checkpoint, self.size)
        return [taken, peak / 2**20]

    def theirs(self, _: Path) -> list[float]:
        taken, peak = peers.diffsynth(self.checkpoint, self.size)
        return [taken, peak / 2**20]


class Full(Peer):
    """The same with the whole model."""

    sizes = (256, 1024)

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint, size)
        self.rounds = 3 if size == 256 else 1


class Riders(Measure):
    sizes = (256,)

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint)
        self.size = size
        what = f"{RIDERS} riders, disk profile, {size}x{size}"
        self.rows = [Row(f"{what}: read from disk", "nothing", "MiB", "1 rider", (0, 1.1)),
                     Row(what, "nothing", "s", f"{RIDERS} times the computing of one with all resident", (0, 1.1))]

    def ours(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server:
            server.forward(self.size, DISK)
            before = server.moved_bytes()
            begun = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(RIDERS) as pool:
                list(pool.map(lambda _: server.forward(self.size, DISK), range(RIDERS)))
            taken = time.monotonic() - begun
            return [(server.moved_bytes() - before) / 2**20, taken]

    def theirs(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server:
            one = int(server.forward(self.size, DISK)["disk_read_bytes"])
        return [one / 2**20, RIDERS * resident_seconds(binaries, self.checkpoint, self.size)]


class Budgets(Measure):
    rounds = 1  # Bytes do not vary.
    percents = (25, 50, 75, 100)

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        self.rows = [Row(f"second request, budget for {percent} % of the model beside what streams: read from disk",
                         f"{percent} %", "MiB", "the model", (0.95 - percent / 100, 1.05 - percent / 100))
                     for percent in self.percents]
        self.model_bytes = sum(shard.stat().st_size for shard in checkpoint.glob("*.safetensors"))
        self.beside = 0  # Activations and the streaming window, of the build whose turn is first: budgets are equal.

    def ours(self, binaries: Path) -> list[float]:
        if not self.beside:
            with Server(binaries, self.checkpoint) as server:
                self.beside = int(server.forward(256, DISK)["peak_device_bytes"])
        moved = []
        for percent in self.percents:
            budget = self.model_bytes * percent // 100 + self.beside
            with Server(binaries, self.checkpoint, "--device-budget", str(budget)) as server:
                server.forward(256, DISK, UNLIMITED)
                moved.append(int(server.forward(256, DISK, UNLIMITED)["disk_read_bytes"]) / 2**20)
        return moved

    def theirs(self, _: Path) -> list[float]:
        return [self.model_bytes / 2**20] * len(self.rows)


class Ledger(Measure):
    cases = (("disk profile", 1024, DISK, 0, "nothing"), ("resident profile", 256, RESIDENT, UNLIMITED, "everything"))

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        what = "growth of the process"
        self.rows = [Row(f"{name}, {size}x{size}: {what}", resident, "MiB", "the ledger's peak", (0, 1.02))
                     for name, size, _, _, resident in self.cases]

    def ours(self, binaries: Path) -> list[float]:
        return self.both(binaries)[0]

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        grown, ledger = [], []
        for _, size, config, limit, _ in self.cases:
            with Server(binaries, self.checkpoint, "--device-budget", "60%") as server:
                before = peers.resident_bytes(server.process.pid)
                server.forward(size, config, limit)
                grown.append((peers.peak_bytes(server.process.pid) - before) / 2**20)
                ledger.append(server.ledger_peak_bytes() / 2**20)
        return grown, ledger


class Manager(Measure):
    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        against = "the model on weights that simply lie in memory"
        self.rows = [Row("served, 256x256", "everything", "s", against, (0, 1.03))]

    def ours(self, binaries: Path) -> list[float]:
        return self.both(binaries)[0]

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        output = subprocess.run([binaries / "bench_manager_overhead", self.checkpoint, "256", "1"], check=True,
                                capture_output=True, text=True).stdout
        served, plain = output.split()
        self.limits.append("computing")
        return [float(served)], [float(plain)]


class Link(Measure):
    cases = tuple((ratio, riders) for ratio in (1, 2, 6) for riders in (1, 8))

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        self.rows = [Row(f"simulated link, moving {ratio} x computing, {riders} rider(s)", "nothing", "s",
                         "the longer of moving and computing", (0, 1.1)) for ratio, riders in self.cases]

    def ours(self, binaries: Path) -> list[float]:
        return self.both(binaries)[0]

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        output = subprocess.run([binaries / "bench_simulated_link"], check=True, capture_output=True, text=True).stdout
        taken, limit = {}, {}
        for line in output.splitlines()[2:]:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            case = (int(cells[0]), int(cells[1]))
            limit[case] = float(cells[3].split()[0])
            taken[case] = float(cells[4]) * limit[case]  # Has more digits than the time itself.
        return [taken[case] for case in self.cases], [limit[case] for case in self.cases]


class Overhead(Measure):
    rounds = 9  # A second each; a percentile is not steady.

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        self.rows = [Row(f"tiny model, 64 clients at once: {what}", "everything", "ms")
                     for what in ("all requests, a request", "median request", "99th percentile")]

    def ours(self, binaries: Path) -> list[float]:
        program = binaries / "bench_request_overhead"
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
        requests, errors, rate, median, last = output.split()
        if errors != "0":
            raise RuntimeError(f"bench_request_overhead: {errors} of {requests} requests failed, expected none")
        return [1000 / float(rate), float(median), float(last)]

    def theirs(self, _: Path) -> list[float]:
        return []


MEASURES = {"limit": Limit, "eager": Eager, "peers": Peer, "riders": Riders, "budgets": Budgets, "ledger": Ledger,
            "manager": Manager, "link": Link, "overhead": Overhead}

if __name__ == "__main__":
    run_eager(Path(sys.argv[1]), int(sys.argv[2]))
