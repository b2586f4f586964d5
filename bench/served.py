"""A server that is measured, what it is asked for, and what its answers tell; and what other programs of a build print."""

import itertools
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import peers

DISK = peers.CONFIG | dict.fromkeys(("preparing_dtype", "computation_dtype"), "float32")


def resident(dtype: str) -> dict:
    return {f"{state}_{what}": value for state in ("offload", "onload", "preparing", "computation")
            for what, value in (("dtype", dtype), ("device", "accelerator"))}


RESIDENT = resident("float32")
UNLIMITED = None


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


def output_of(program: Path | str, *arguments: Path | str) -> str:
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout
