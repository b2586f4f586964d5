"""What bench/measure.py measures: each promise's rows, ours and what they are held against."""

import concurrent.futures
import itertools
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import peers

DISK = peers.CONFIG | dict.fromkeys(("preparing_dtype", "computation_dtype"), "float32")


def resident(dtype: str) -> dict:
    return {f"{state}_{what}": value for state in ("offload", "onload", "preparing", "computation")
            for what, value in (("dtype", dtype), ("device", "accelerator"))}


RESIDENT = resident("float32")
UNLIMITED = None
RIDERS = 8


@dataclass(frozen=True)
class Loop:
    size: int  # Pixels a side.
    steps: int
    guided: bool


class Server:
    """A ditserve process with one model, all of it on disk; it serves once this is made."""

    def __init__(self, binaries: Path, checkpoint: Path, *flags: str):
        peers.drop_page_cache()
        self.binaries = binaries
        self.folder = tempfile.TemporaryDirectory()
        self.address = f"unix:{self.folder.name}/socket"
        self.process = subprocess.Popen(
            [binaries / "ditserve", "--listen", self.address, *peers.no_other_ports(binaries), "--log-level", "warn",
             "--model", f"bench={checkpoint}", *flags], stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()
        self.timesteps = itertools.count(1)

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

    def compute(self, command: str, size: int, config: dict, limit: float | None, *arguments: str) -> dict:
        arguments += ("--height", str(size), "--width", str(size), "--dtype", config["computation_dtype"],
                      "--prompt-tokens", str(peers.PROMPT_TOKENS), "--vram-config", json.dumps(config))
        if limit is not UNLIMITED:
            arguments += ("--vram-limit-gib", str(limit))
        return self.call(command, *arguments)["stats"]

    def forward(self, size: int, config: dict, limit: float | None = 0, timestep: float | None = None,
                *arguments: str) -> dict:
        """A pass at a timestep that was not seen, which takes every weight that reaches an output, or at this one."""
        unseen = next(self.timesteps) / 1000
        return self.compute("forward", size, config, limit, "--timestep", str(unseen if timestep is None else timestep),
                            *arguments)

    def denoise(self, loop: Loop, config: dict = DISK, limit: float | None = 0, *arguments: str) -> dict:
        import numpy

        arguments += ("--steps", str(loop.steps))
        with tempfile.NamedTemporaryFile(suffix=".npy") as negative:
            if loop.guided:
                numpy.save(negative, numpy.random.default_rng(1).standard_normal((1, 3, 3584), numpy.float32))
                negative.flush()
                arguments += ("--negative-emb", negative.name)
            return self.compute("denoise", loop.size, config, limit, *arguments)

    def moved_bytes(self) -> int:
        return int(self.call("residency")["transfers"][0]["bytes"])

    def ledger_peak_bytes(self) -> int:
        return sum(int(memory["peak_bytes"]) for memory in self.call("residency")["memories"])


def seconds(stats: dict, stage: str = "total") -> float:
    return float(stats.get(stage, "0s").rstrip("s"))


def what_limited(*passes: dict) -> str:
    """By the server's own account: the disk where the passes waited for weights more than a tenth of their time."""
    waited, total = (sum(seconds(stats, stage) for stats in passes) for stage in ("stall", "total"))
    return "the disk" if waited > total / 10 else "computing"


def resident_pass(binaries: Path, checkpoint: Path, size: int, dtype: str = "float32") -> dict:
    """The account of a pass with every weight in memory since the pass before it."""
    with Server(binaries, checkpoint, "--device-budget", "60%") as server:
        server.forward(256, resident(dtype), UNLIMITED)
        return server.forward(size, resident(dtype), UNLIMITED)


def needed_ranges(checkpoint: Path) -> list[tuple[Path, int, int]]:
    """Where in which shard the parameters begin and end that an output depends on: of the last block's text only the
    modulation, the keys and the values reach one."""
    last = f"transformer_blocks.{json.loads((checkpoint / 'config.json').read_text())['num_layers'] - 1}."
    without = tuple(last + part for part in ("attn.add_q_proj.", "attn.norm_added_q.", "attn.to_add_out.", "txt_mlp."))
    ranges = []
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with shard.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        for name, tensor in header.items():
            if name != "__metadata__" and not name.startswith(without):
                begin, end = tensor["data_offsets"]
                ranges.append((shard, 8 + header_bytes + begin, 8 + header_bytes + end))
    return sorted(ranges)


def needed_bytes(checkpoint: Path) -> int:
    return sum(end - begin for _, begin, end in needed_ranges(checkpoint))


def read_every_byte(checkpoint: Path) -> float:
    """Seconds to read what is needed once past the page cache: with one read in flight or four, whichever is faster."""
    return min(read_with(checkpoint, threads) for threads in (1, 4))


def read_with(checkpoint: Path, threads: int) -> float:
    peers.drop_page_cache()
    piece = 4 << 20
    # (As dictionaries keep their order: of neighbours that share a piece one.)
    pieces = list(dict.fromkeys((shard, at) for shard, begin, end in needed_ranges(checkpoint)
                                for at in range(begin // piece * piece, end, piece)))
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


def output_of(program: Path | str, *arguments: Path | str) -> str:
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def run_eager(checkpoint: Path, size: int, name: str) -> None:
    """The reference in this dtype, all of it in memory; prints the seconds of its second pass."""
    import torch
    from diffsynth.core import load_model
    from diffsynth.models.qwen_image_dit import QwenImageDiT

    blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
    shards = sorted(str(shard) for shard in checkpoint.glob("*.safetensors"))
    dtype = getattr(torch, name)
    model = load_model(QwenImageDiT, shards, config={"num_layers": blocks}, torch_dtype=dtype, device="cpu")
    tokens = peers.PROMPT_TOKENS
    inputs = {"latents": torch.randn((1, 16, size // 8, size // 8), dtype=dtype),
              "timestep": torch.zeros((1,), dtype=dtype),
              "prompt_emb": torch.randn((1, tokens, 3584), dtype=dtype),
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
    limits: list[str] = field(default_factory=list)  # What limited each of our turns; none for bytes.


class Measure:
    """Rows that one turn gives the values of. Less is better in every one."""

    rounds = 3
    sizes = (0,)  # Pixels a side; 0: not of one size.
    program = "ditserve"  # What a build must have for it.

    def __init__(self, checkpoint: Path, _size: int = 0):
        self.checkpoint = checkpoint
        self.rows: list[Row] = []

    def ours(self, binaries: Path) -> list[float]:
        raise NotImplementedError

    def theirs(self, _: Path) -> list[float]:
        """Of a row that is held against nothing it does not matter."""
        return [0.0] * len(self.rows)

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
        against = "the longer of reading each needed byte once and computing with all resident"
        self.rows = [Row(f"disk profile, {size}x{size}, a server's {which} request", "nothing", "s", against, (0, 1.11))
                     for which in ("second", "first")]

    def ours(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server:
            first = server.forward(self.size, DISK)
            second = server.forward(self.size, DISK)
        for row, stats in zip(self.rows, (second, first)):
            row.limits.append(what_limited(stats))
        return [seconds(second), seconds(first)]

    def theirs(self, binaries: Path) -> list[float]:
        computing = seconds(resident_pass(binaries, self.checkpoint, self.size))
        return [max(read_every_byte(self.checkpoint), computing)] * 2


class Eager(Measure):
    sizes = (256, 1024)
    dtype = "float32"

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint)
        self.size = size
        self.rows = [Row(f"{self.dtype}, {size}x{size}", "everything", "s", "eager PyTorch", (0, 0.75))]

    def ours(self, binaries: Path) -> list[float]:
        stats = resident_pass(binaries, self.checkpoint, self.size, self.dtype)
        self.rows[0].limits.append(what_limited(stats))
        return [seconds(stats)]

    def theirs(self, _: Path) -> list[float]:
        output = output_of(sys.executable, __file__, self.checkpoint, str(self.size), self.dtype)
        return [json.loads(output.strip().splitlines()[-1])]


class EagerBFloat16(Eager):
    """On a processor with bfloat16 dot products. On others we compute such a profile in float32."""

    dtype = "bfloat16"


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
        stats, peak = peers.ditserve(binaries, self.checkpoint, self.size)
        self.rows[0].limits.append(what_limited(stats))
        return [seconds(stats), peak / 2**20]

    def theirs(self, _: Path) -> list[float]:
        taken, peak = peers.diffsynth(self.checkpoint, self.size)
        return [taken, peak / 2**20]


class Full(Peer):
    """The same with the whole model, whose peak is promised too."""

    sizes = (256, 1024)
    promised_mib = 1024

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint, size)
        self.rounds = 3 if size == 256 else 1
        if size == 1024:
            self.rows.append(Row(self.rows[1].what, "nothing", "MiB", "the promise", (0, 1)))

    def ours(self, binaries: Path) -> list[float]:
        taken, peak = super().ours(binaries)
        return [taken, peak, peak][:len(self.rows)]

    def theirs(self, binaries: Path) -> list[float]:
        return [*super().theirs(binaries), self.promised_mib][:len(self.rows)]


class Riders(Measure):
    sizes = (256,)

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint)
        self.size = size
        what = f"{RIDERS} riders that begin at once, disk profile, {size}x{size}"
        self.rows = [Row(f"{what}: read from disk", "nothing", "MiB", "1 rider", (0, 1.1)),
                     Row(what, "nothing", "s", f"{RIDERS} times the computing of one with all resident", (0, 1.1))]

    def ours(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server:
            server.forward(self.size, DISK)
            before = server.moved_bytes()
            begun = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(RIDERS) as pool:
                # By itself one that comes a little later waits for those before it, if computing is what takes the time.
                passes = list(pool.map(lambda _: server.forward(self.size, DISK, 0, None, "--join", "immediate"),
                                       range(RIDERS)))
            taken = time.monotonic() - begun
            self.rows[1].limits.append(what_limited(*passes))
            return [(server.moved_bytes() - before) / 2**20, taken]

    def theirs(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server:
            one = int(server.forward(self.size, DISK)["disk_read_bytes"])
        return [one / 2**20, RIDERS * seconds(resident_pass(binaries, self.checkpoint, self.size))]


class Modulation(Measure):
    rounds = 1  # Bytes do not vary.

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        self.rows = [Row("a second pass at a timestep, disk profile: read from disk", "nothing", "MiB",
                         "the first pass at it", (0, 0.67))]

    def ours(self, binaries: Path) -> list[float]:
        return self.both(binaries)[0]

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        with Server(binaries, self.checkpoint) as server:
            first, again = (int(server.forward(256, DISK, timestep=0.5)["disk_read_bytes"]) / 2**20 for _ in range(2))
        return [again], [first]


class Steps(Measure):
    """A loop with guidance, of 20 steps."""

    rounds = 1  # Minutes a side.
    sizes = (256, 512)

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint)
        self.loop = Loop(size, 20, guided=True)
        what = f"{self.loop.steps} steps with guidance, disk profile, float32, {size}x{size}"
        against, target = ("the loop of DiffSynth-Studio 2.1.12", 0.20) if size == 256 else \
            ("the longer of reading what each step needs once and computing with all resident", 1.11)
        single = f"{2 * self.loop.steps} single passes"
        self.rows = [Row(f"{what}: read from disk", "nothing", "MiB", single, (0, 0.36)),
                     Row(what, "nothing", "s", against, (0, target))]

    def ours(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server:
            stats = server.denoise(self.loop)
        self.rows[1].limits.append(what_limited(stats))
        return [int(stats["disk_read_bytes"]) / 2**20, seconds(stats)]

    def theirs(self, binaries: Path) -> list[float]:
        [again], [single] = Modulation(self.checkpoint, 0).both(binaries)
        if self.loop.size == 256:
            taken = peers.diffsynth(self.checkpoint, self.loop.size, self.loop.steps)[0]
        else:
            with Server(binaries, self.checkpoint, "--device-budget", "60%") as server:
                server.forward(256, RESIDENT, UNLIMITED)
                computing = seconds(server.denoise(self.loop, RESIDENT, UNLIMITED))
            read = single + (self.loop.steps - 1) * again
            taken = max(computing, read / single * read_every_byte(self.checkpoint))
        return [2 * self.loop.steps * single, taken]


class SecondStep(Measure):
    """Of a loop: the first one computes what is kept of modulation, and holds its weights."""

    rounds = 1  # Bytes hardly vary.
    sizes = (1024,)
    promised_mib = 614.4

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint)
        self.loop = Loop(size, 2, guided=False)
        blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
        self.rows = [Row(f"{blocks} blocks, disk profile, float32, {size}x{size}, second step: peak of the process",
                         "nothing", "MiB", "the promise", (0, 1))]

    def ours(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server, tempfile.TemporaryDirectory() as folder:
            first_latents = Path(folder, "latents.npy")
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                ends = pool.submit(server.denoise, self.loop, DISK, 0, "--latents-every", "1", "--save-latents",
                                   str(first_latents))
                while not first_latents.exists() and not ends.done():
                    time.sleep(0.01)
                if ends.done():
                    raise RuntimeError(f"the loop ended before its second step was watched: {ends.result()}")
                peers.forget_peak(server.process.pid)
                ends.result()
            return [peers.peak_bytes(server.process.pid) / 2**20]

    def theirs(self, _: Path) -> list[float]:
        return [self.promised_mib]


class Loops(Measure):
    """Requests of any schedule, size and guidance share sweeps."""

    rounds = 1  # Bytes hardly vary.
    loops = (Loop(256, 16, True), Loop(320, 10, False), Loop(128, 12, True), Loop(192, 6, False))

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        told = ", ".join(f"{loop.steps} steps at {loop.size}x{loop.size}{' with guidance' if loop.guided else ''}"
                         for loop in self.loops)
        self.rows = [Row(f"4 loops at once, disk profile ({told}): read from disk", "nothing", "MiB",
                         "the longest alone", (0, 1.2))]

    def ours(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server:
            with concurrent.futures.ThreadPoolExecutor(len(self.loops)) as pool:
                list(pool.map(server.denoise, self.loops))
            return [server.moved_bytes() / 2**20]

    def theirs(self, binaries: Path) -> list[float]:
        with Server(binaries, self.checkpoint) as server:
            server.denoise(max(self.loops, key=lambda loop: loop.steps))
            return [server.moved_bytes() / 2**20]


class Budgets(Measure):
    rounds = 1  # Bytes do not vary.
    percents = (25, 50, 75, 100)

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        self.rows = [Row(f"second request, budget for {percent} % of the model beside what streams: read from disk",
                         f"{percent} %", "MiB", "the model", (0.95 - percent / 100, 1.05 - percent / 100))
                     for percent in self.percents]
        self.model_bytes = needed_bytes(checkpoint)
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
    program = "bench_manager_overhead"

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        against = "the model on weights that simply lie in memory"
        self.rows = [Row("served, 256x256", "everything", "s", against, (0, 1.03))]

    def ours(self, binaries: Path) -> list[float]:
        return self.both(binaries)[0]

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        served, plain = output_of(binaries / self.program, self.checkpoint, "256", "1").split()
        self.rows[0].limits.append("computing")
        return [float(served)], [float(plain)]


class Link(Measure):
    program = "bench_simulated_link"
    cases = tuple((ratio, riders, laps) for ratio in (1, 2, 6) for riders, laps in ((1, 1), (8, 1), (1, 10)))

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        self.rows = [Row(f"simulated link, moving {ratio} x computing, " +
                         (f"{riders} rider(s)" if laps == 1 else f"a loop of {laps} steps with guidance, of whose modules "
                          "the first step alone takes a third"),
                         "nothing", "s", "the longer of moving and computing", (0, 1.1))
                     for ratio, riders, laps in self.cases]

    def ours(self, binaries: Path) -> list[float]:
        return self.both(binaries)[0]

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        taken, limit = {}, {}
        for line in output_of(binaries / self.program).splitlines()[2:]:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            case = tuple(int(cell) for cell in cells[:3])
            limit[case] = float(cells[4].split()[0])
            taken[case] = float(cells[5]) * limit[case]  # Has more digits than the time itself.
        for row, (ratio, riders, laps) in zip(self.rows, self.cases):
            row.limits.append("the link" if ratio > (riders if laps == 1 else 2) else "computing")
        return [taken[case] for case in self.cases], [limit[case] for case in self.cases]


class Lease(Measure):
    """What a lease costs beside computing."""

    program = "bench_lease_cost"
    cases = tuple((case, riders) for case in ("resident", "half-streamed", "half-streamed-32-limits")
                  for riders in (1, 8, 32))
    figures = ("the executor's time a lease", "wall time a lease", "joining, a rider")
    promised_us = {(case, riders): us for case in ("resident", "half-streamed") for riders, us in ((1, 6), (32, 20))}

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        self.bounds_us = []
        for case, riders in self.cases:
            resident = "everything" if case == "resident" else "half"
            who = f"847 modules of a page, {riders} rider(s)" + (" of 32 limits" if "limits" in case else "")
            for figure in self.figures:
                # With one rider that streams, the wall time is that of reading a page.
                promised = figure != self.figures[2] and (figure, case, riders) != (self.figures[1], "half-streamed", 1)
                bound = self.promised_us.get((case, riders), 0) if promised else 0
                against = ("the promise", (0, 1)) if bound else ()
                self.rows.append(Row(f"{who}: {figure}", resident, "us", *against))
                self.bounds_us.append(bound)

    def ours(self, binaries: Path) -> list[float]:
        measured = {}
        for line in output_of(binaries / self.program).splitlines()[1:]:
            case, riders, wall, executor, join = line.split()
            measured[case, int(riders)] = [float(executor), float(wall), float(join)]
        values = [value for case in self.cases for value in measured[case]]
        for i, row in enumerate(self.rows):
            waits = i % 3 == 1 and row.resident == "half" and values[i - 1] < 0.9 * values[i]
            row.limits.append("the disk" if waits else "computing")
        return values

    def theirs(self, _: Path) -> list[float]:
        return self.bounds_us


class Overhead(Measure):
    program = "bench_request_overhead"
    rounds = 9  # A second each; a percentile is not steady.

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        self.rows = [Row(f"tiny model, 64 clients at once: {what}", "everything", "ms")
                     for what in ("all requests, a request", "median request", "99th percentile")]

    def ours(self, binaries: Path) -> list[float]:
        requests, errors, rate, median, last = output_of(binaries / self.program).split()
        if errors != "0":
            raise RuntimeError(f"bench_request_overhead: {errors} of {requests} requests failed, expected none")
        for row in self.rows:
            row.limits.append("computing")
        return [1000 / float(rate), float(median), float(last)]


MEASURES = {"limit": Limit, "eager": Eager, "eager-bfloat16": EagerBFloat16, "peers": Peer, "riders": Riders,
            "modulation": Modulation, "steps": Steps, "second-step": SecondStep, "loops": Loops, "budgets": Budgets,
            "ledger": Ledger, "manager": Manager, "link": Link, "lease": Lease, "overhead": Overhead}

if __name__ == "__main__":
    run_eager(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
