"""Measures the machine's first GPU, in one run, and prints a table of it for bench/RESULTS.md.

    python bench/gpu.py --bin build/gpu/bin --checkpoint DIR [--rows link streamed seed] [--rounds 3]

A seeded checkpoint in bfloat16, 1024x1024, a prompt of 5 tokens, bfloat16 arithmetic. Times are of the forward pass as
each side's caller sees it, of a process' second pass; ours is at a timestep that it has not seen, so that it moves and
computes as much as its first. Both sides take turns. Memory is what NVML says of the whole GPU, or slice, at its most,
less what was taken before: nobody else may use it meanwhile. Ends with 1 where a target was missed.
"""

import argparse
import concurrent.futures
import functools
import importlib.util
import json
import sys
import time
from pathlib import Path

import card
import measure
import peers
from request_measures import RIDERS
from rows import Measure, Row
from served import Server, output_of, seconds

SIDE = 1024
BEST = (0, 1 / 0.9)  # Of the longer of moving and computing.
DIFFSYNTH_DEVICE = "cuda"
GIB = 2**30


@functools.cache
def the_card() -> card.Card:
    return card.Card()


def serve(binaries: Path, checkpoint: Path) -> Server:
    return Server(binaries, checkpoint, "--device", "cuda:0", "--device-budget", "90%", "--host-budget", "80%")


def forward(server: Server, profile: str, side: int) -> dict:
    """A pass at a timestep that was not seen: of one that was, a server keeps what timesteps alone decide."""
    return server.call("forward", "--height", str(side), "--width", str(side), "--dtype", "bfloat16",
                       "--timestep", str(next(server.timesteps) / 1000),
                       "--prompt-tokens", str(peers.PROMPT_TOKENS), "--profile", profile)["stats"]


def rates(binaries: Path) -> dict[str, float]:
    """Bytes a second by way: of the largest pieces, and of one large copy."""
    best = {}
    for line in output_of(binaries / "bench_device_link").splitlines():
        way, _, rate = line.split()
        best.setdefault(way, float(rate))
    return best


class Link(Measure):
    """What the device's copies reach, of what one copy does that is not cut in pieces."""

    def __init__(self, checkpoint: Path, _size: int = 0):
        super().__init__(checkpoint)
        self.rows = [Row(f"{way} from pinned host memory: seconds a GB", "", "s", "one copy of 1 GiB", BEST)
                     for way in ("copies of bfloat16", "casts of float8 to bfloat16")]

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        best = rates(binaries)
        return [1e9 / best["copy"], 1e9 / best["cast"]], [1e9 / best["limit"]] * 2

    def ours(self, binaries: Path) -> list[float]:
        return self.both(binaries)[0]


class Streamed(Measure):
    """Weights that cross the link in every pass, of one rider and of several, against what no server could beat."""

    cases = [(profile, riders) for profile in ("host-offload", "fp8-host") for riders in (1, RIDERS)]

    def __init__(self, checkpoint: Path, _size: int = 0, side: int = SIDE):
        super().__init__(checkpoint)
        self.side = side
        self.rows = [Row(f"{profile}, {riders} rider(s)", "nothing", "s", "the longer of moving and computing", BEST)
                     for profile, riders in self.cases]

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        rate = rates(binaries)["limit"]
        with serve(binaries, self.checkpoint) as server:
            forward(server, "resident", self.side)
            computing = seconds(forward(server, "resident", self.side))
        ours, theirs = [], []
        for row, (profile, riders) in zip(self.rows, self.cases):
            with serve(binaries, self.checkpoint) as server:
                forward(server, profile, self.side)
                begun = time.monotonic()
                with concurrent.futures.ThreadPoolExecutor(riders) as pool:
                    passes = list(pool.map(lambda _: forward(server, profile, self.side), range(riders)))
                ours.append(seconds(passes[0]) if riders == 1 else time.monotonic() - begun)
            moving = sum(int(stats["device_copy_bytes"]) for stats in passes) / rate
            theirs.append(max(moving, riders * computing))
            row.limits.append("the link" if moving > riders * computing else "computing")
        return ours, theirs

    def ours(self, binaries: Path) -> list[float]:
        return self.both(binaries)[0]


class Seed(Measure):
    """The three runs of DiffSynth's document on fine-grained VRAM management, side by side."""

    runs = {"everything on the device": "resident", "offloaded to host memory": "host-offload", "on disk": "disk"}

    def __init__(self, checkpoint: Path, _size: int = 0, side: int = SIDE):
        super().__init__(checkpoint)
        self.side = side
        self.rows = [Row(f"{run}: {what}", "", unit, "DiffSynth-Studio 2.1.12", (0, 1))
                     for run in self.runs for what, unit in (("a pass", "s"), ("peak of the GPU's memory", "GiB"))]

    def ours(self, binaries: Path) -> list[float]:
        values = []
        for row, profile in zip(self.rows[::2], self.runs.values()):
            with card.Followed(the_card()) as memory, serve(binaries, self.checkpoint) as server:
                forward(server, profile, self.side)
                stats = forward(server, profile, self.side)
            row.limits.append("moving" if seconds(stats, "stall") > seconds(stats) / 10 else "computing")
            values += [seconds(stats), memory.peak / GIB]
        return values

    def theirs(self, _: Path) -> list[float]:
        values = []
        for profile in self.runs.values():
            peers.drop_page_cache()
            with card.Followed(the_card()) as memory:
                output = output_of(sys.executable, __file__, "--diffsynth", profile, "--checkpoint", self.checkpoint,
                                   "--side", str(self.side), "--on", DIFFSYNTH_DEVICE)
            values += [float(output.split()[-1]), memory.peak / GIB]
        return values


def run_diffsynth(checkpoint: Path, profile: str, side: int, device: str) -> float:
    """DiffSynth's run that this profile is, in this process; the seconds of its second pass."""
    import torch
    from diffsynth.core import AutoWrappedLinear, AutoWrappedModule, load_model
    from diffsynth.models.qwen_image_dit import QwenImageDiT, RMSNorm

    config = {"num_layers": json.loads((checkpoint / "config.json").read_text())["num_layers"]}
    shards = sorted(str(shard) for shard in checkpoint.glob("*.safetensors"))
    if profile == "resident":
        model = load_model(QwenImageDiT, shards, config=config, torch_dtype=torch.bfloat16, device=device)
    else:
        rests = ("cpu", torch.bfloat16) if profile == "host-offload" else ("disk", "disk")
        vram = {f"{station}_{key}": rest for station in ("offload", "onload")
                for key, rest in zip(("device", "dtype"), rests)}
        vram |= {f"{station}_{key}": value for station in ("preparing", "computation")
                 for key, value in (("device", device), ("dtype", torch.bfloat16))}
        model = load_model(QwenImageDiT, shards, config=config, vram_config=vram, vram_limit=0,
                           module_map={torch.nn.Linear: AutoWrappedLinear, RMSNorm: AutoWrappedModule})
    options = {"dtype": torch.bfloat16, "device": device}
    inputs = {"latents": torch.randn((1, 16, side // 8, side // 8), **options), "timestep": torch.zeros((1,), **options),
              "prompt_emb": torch.randn((1, peers.PROMPT_TOKENS, 3584), **options),
              "prompt_emb_mask": torch.ones((1, peers.PROMPT_TOKENS), dtype=torch.int64, device=device)}
    with torch.no_grad():
        for _ in range(2):
            begun = time.monotonic()
            model(**inputs, height=side, width=side).cpu()  # Until it is there.
            taken = time.monotonic() - begun
    return taken


MEASURES = {"link": Link, "streamed": Streamed, "seed": Seed}


def heading(checkpoint: Path) -> list[str]:
    blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
    return [f"## On {the_card().described()}", "",
            f"In one run of `make bench-gpu` at commit {measure.commit()}, on {measure.machine()}; of {blocks} blocks. "
            + " ".join(__doc__.split("\n\n")[2].split()), "",
            "| " + " | ".join(measure.COLUMNS) + " |", "|" + " --- |" * len(measure.COLUMNS)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--diffsynth", help="prints the seconds of this run of DiffSynth's, and nothing else")
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--on", default=DIFFSYNTH_DEVICE)
    arguments = parser.parse_args()
    if arguments.diffsynth:
        print(run_diffsynth(arguments.checkpoint, arguments.diffsynth, arguments.side, arguments.on))
        return
    print("\n".join(heading(arguments.checkpoint)), flush=True)
    missed = False
    for name in arguments.rows:
        if name == "seed" and importlib.util.find_spec("diffsynth") is None:
            print("| **skipped: the seed's runs: DiffSynth-Studio is not installed** |" +
                  " |" * (len(measure.COLUMNS) - 1))
            continue
        for row in measure.promises(MEASURES[name](arguments.checkpoint), arguments.bin.resolve(), arguments.rounds):
            print("| " + " | ".join(row) + " |", flush=True)
            missed |= any(cell.endswith("missed**") for cell in row)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
