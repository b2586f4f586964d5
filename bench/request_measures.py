"""What bench/measure.py measures by requests to a server: each promise's rows, ours and what they are held against."""

import concurrent.futures
import json
import tempfile
import time
from pathlib import Path

import peers
from eager import eager
from headline import flop_of_blocks, tokens
from reading import needed_bytes, read_every_byte
from rows import Measure, Row
from served import DISK, RESIDENT, UNLIMITED, Loop, Server, output_of, resident_pass, seconds, what_limited

RIDERS = 8


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
    """Also as a share of the processor's peak, which is measured in the same turn."""

    sizes = (256, 1024)
    dtype = "float32"

    def __init__(self, checkpoint: Path, size: int):
        super().__init__(checkpoint)
        self.size = size
        blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
        self.gflop = flop_of_blocks(blocks, tokens(size, size), peers.PROMPT_TOKENS) / 1e9
        what = f"{self.dtype}, {size}x{size}"
        self.rows = [Row(what, "everything", "s", "eager PyTorch", (0, 0.75)),
                     Row(f"{what}: share of the measured peak", "everything", "GFLOP/s",
                         "products of registers on all threads", more_is_better=True)]

    def ours(self, binaries: Path) -> list[float]:
        stats = resident_pass(binaries, self.checkpoint, self.size, self.dtype)
        for row in self.rows:
            row.limits.append(what_limited(stats))
        return [seconds(stats), self.gflop / seconds(stats)]

    def theirs(self, binaries: Path) -> list[float]:
        peak = float(output_of(binaries / "bench_product_peak", self.dtype))
        return [eager(self.checkpoint, self.size, self.dtype), peak / 1e9]


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
        moved = []
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder, "ditserve.yaml")
            config.write_text("memory: {modulation: 0}\n")  # By default a part of the budget: more, where it is more.
            keeps_none = ("--config", str(config))
            if not self.beside:
                with Server(binaries, self.checkpoint, *keeps_none) as server:
                    self.beside = int(server.forward(256, DISK)["peak_device_bytes"])
            for percent in self.percents:
                budget = str(self.model_bytes * percent // 100 + self.beside)
                with Server(binaries, self.checkpoint, *keeps_none, "--device-budget", budget) as server:
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
