"""Computes what the seed's forward, and a loop of such, would take on named GPUs, and how far off that is where runs
were published.

    python3 bench/headline.py --bin build/release/bin [--write docs/cuda.md]

A model, not a measurement: no GPU has run ditserve. The forward is that of the whole QwenImageDiT at 1024x1024 with a
prompt of 5 tokens; its modules and their sizes are the program's own (bench_model_modules). Weights rest in host
memory. Module by module, in execution order:

- The engine for copies takes one module after the other, at the link's rate and COPY_OVERHEAD each, and waits where the
  window that the profile's copies have on the device has no room. It does not know what is computed.
- Operations of a module begin when its copy is there and the operations before are done; riders compute one after the
  other and share the copy. They take their FLOP at the rate that a whole forward reaches, which holds what is not a
  product of matrices, too. Where weights are multiplied in float8, as in the profile fp8-compute, products take less by
  what they were measured to, and all else takes as long.
- A loop's steps follow each other without a gap, both branches of guidance compute with each copy, and modules that make
  modulation are copied and computed once, and again by each step whose row finds no room. Device bytes have room for all.
- DiffSynth's way: a copy from pageable memory, then the operation, then the next module; and a pass at a time.

--write puts the tables between the markers of that document; tests/system/headline_test.py checks that they are there.
"""

import argparse
import re
import subprocess
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

SIDE, PROMPT_TOKENS = 1024, 5
STEPS, BRANCHES = 50, 2  # Of a loop with guidance.
WIDTH = 3072  # Of a token.
WINDOW_MODULES = 3  # Of the widest: one that is computed with, two that arrive (core/residency).
BF16, FP8 = 2, 1  # Bytes an element.
MARKERS = ("<!-- of bench/headline.py -->", "<!-- end of bench/headline.py -->")


@dataclass(frozen=True)
class Rate:
    """A figure that somebody else measured, or that nobody has verified."""
    value: float
    source: str


UNVERIFIED = "unverified"
# Two records and two waits beside the copy: 2.3 us (FlexKV #193) to 7 us (arXiv 2602.21548) are the copy's.
COPY_OVERHEAD = Rate(10e-6, UNVERIFIED)  # Seconds.
# Half of pinned memory's on PCIe 3 (dask-cuda #98: 5 to 6 for 11 to 12).
PAGEABLE = (Rate(6e9, UNVERIFIED), Rate(12e9, UNVERIFIED))  # Bytes a second.
GEMM = "torch, 4096 to 8192, zzc0721/torch-performance-test-data"
# Of what a product of matrices alone reaches, a whole forward reaches 0.65 to 0.75 in the published runs below.
OF_GEMM = Rate(0.7, UNVERIFIED)
# On a GPU, LibTorch's cuBLAS works in these besides, tests/cuda_audit; by whether the card is of SM 9.0 and up.
WORKSPACE_BYTES = {True: 33.6e6, False: 10.5e6}
# What keeps modulation where nobody says how much: a part of the budget, and so much at most (server/make_engine.cc).
MODULATION_PART, MOST_MODULATION_BYTES = 8, 448 << 20
SLOT_BYTES = 8 * (4 << 20 | 256 << 10)  # In which what is cast on its way waits (core/devices/cuda_device.cc).


@dataclass(frozen=True)
class Card:
    name: str
    link: Rate  # Bytes a second, host to device.
    gemm: Rate | None  # FLOP a second of a product of matrices in bfloat16.
    sm_9: bool
    forward: Rate | None = None  # FLOP a second of a whole forward, where a run says it.
    float8: Rate | None = None  # Of a product in float8, where the card has it and somebody has measured it.

    def rate(self) -> float:
        return self.forward.value if self.forward else self.gemm.value * OF_GEMM.value

    def float8_saves(self) -> float:
        """Seconds of each FLOP of a product."""
        gemm = self.gemm.value if self.gemm else self.forward.value / OF_GEMM.value
        return 1 / gemm - 1 / self.float8.value

    def rate_source(self) -> str:
        if self.forward:
            return f"{self.rate() / 1e12:.0f} of a whole forward ({self.forward.source})"
        return (f"{self.rate() / 1e12:.0f} = {OF_GEMM.value} ({OF_GEMM.source}) x {self.gemm.value / 1e12:.1f} "
                f"({self.gemm.source})")

    def float8_source(self) -> str:
        return f"{self.float8.value / 1e12:.0f} ({self.float8.source})" if self.float8 else ""


# Where no rate of its own engine for copies was found, a kernel's on the same link stands in.
H100 = Card("H100 SXM", Rate(52.8e9, "a kernel's, to the host: NVIDIA/nvbandwidth #24"), Rate(793.5e12, GEMM),
            sm_9=True, float8=Rate(1125.5e12, "scales a row, 8192, an H100 of 500 W: pytorch/FBGEMM #2546"))
A100 = Card("A100 PCIe", Rate(25.1e9, "a kernel's, an A100 SXM4: NVIDIA/nvbandwidth #42"), Rate(224.5e12, GEMM),
            sm_9=False)
RTX_5090 = Card("RTX 5090", Rate(56.3e9, "its own: tinygrad/open-gpu-kernel-modules #29"), Rate(208e12, GEMM),
                sm_9=True, float8=Rate(388.9e12, "scales a row, 4096: pytorch/pytorch #155991"))
L40S = Card("L40S", Rate(26.2e9, "an RTX 4090's: NVIDIA/nvbandwidth #15"), None, sm_9=False,
            forward=Rate(130e12, "FLUX.1-dev, eager, TheStageAI"),
            float8=Rate(369e12, "one scale, 512 rows, 4096 to 12288: vllm-project/vllm #6677"))
RTX_4090 = Card("RTX 4090", Rate(26.2e9, "its own, of 23.9 to 26.4: NVIDIA/nvbandwidth #15"), Rate(155.5e12, GEMM),
                sm_9=False)
CARDS = (H100, A100, RTX_5090, L40S, RTX_4090)


@dataclass(frozen=True)
class Module:
    path: str
    weight: int  # Elements.
    bias: int
    read: tuple[int, int] | None = None  # Of both, by ditserve's pass; None: all, as DiffSynth's takes them.

    def elements(self) -> int:
        return self.weight + self.bias

    def makes_modulation(self) -> bool:
        return re.search(r"_mod\.|time_text_embed|norm_out", self.path) is not None

    def rows(self, image: int, text: int) -> int:
        """How many tokens its operation has."""
        if self.makes_modulation():
            return 1  # The timestep's.
        return text if re.search(r"^txt_|\.txt_|\.add_|_add_|norm_added", self.path) else image

    def product_flop(self, image: int, text: int) -> float:
        return 2 * self.weight * self.rows(image, text)

    def flop(self, image: int, text: int) -> float:
        attention = 4 * (image + text)**2 * WIDTH if self.path.endswith("attn.to_out.0") else 0
        return self.product_flop(image, text) + attention


def taken_of(modules: list[Module]) -> list[Module]:
    """What ditserve's pass takes of them: not what reaches no output."""
    return [replace(module, weight=module.read[0], bias=module.read[1]) if module.read else module
            for module in modules if module.read is None or module.read[0] > 0]


def tokens(height: int, width: int) -> int:
    return height // 16 * (width // 16)


def flop_of(modules: list[Module], image: int, text: int) -> float:
    return sum(module.flop(image, text) for module in modules)


def flop_of_blocks(blocks: int, image: int, text: int) -> float:
    """The same of so many blocks, to a hundredth: products of each token with 12 WIDTH^2 weights, and attention."""
    count = image + text
    return blocks * (24 * WIDTH**2 * count + 4 * count**2 * WIDTH)


@dataclass(frozen=True)
class Pass:
    seconds: float
    moving_seconds: float
    computing_seconds: float
    window_bytes: int  # Most that copies took.


def sweep(modules: list[Module], seconds_of: list[float], link: float, moved: int, held: int, window: float) -> Pass:
    """A pass whose module i is computed in seconds_of[i]: `moved` bytes an element cross the link, at so many bytes a
    second; on the device it takes `held`, of at most `window` bytes for all."""
    arrived = done = moving = 0.0
    there = deque()  # What copies take, and when their operations are done.
    taken = most = 0
    for module, seconds in zip(modules, seconds_of):
        begun = arrived
        size = held * module.elements()
        while there and taken + size > window:
            left, ended = there.popleft()
            taken -= left
            begun = max(begun, ended)
        taken += size
        most = max(most, taken)
        copying = COPY_OVERHEAD.value + moved * module.elements() / link
        arrived = begun + copying
        moving += copying
        done = max(done, arrived) + seconds
        there.append((size, done))
    return Pass(done, moving, sum(seconds_of), most)


def synchronous(modules: list[Module], seconds_of: list[float], pageable: float, moved: int = BF16) -> float:
    """Seconds of a pass in which each module waits for the one before, and its operation for its copy."""
    return sum(COPY_OVERHEAD.value + moved * module.elements() / pageable + seconds
               for module, seconds in zip(modules, seconds_of))


def times(modules: list[Module], card: Card, multiplied: int = BF16) -> list[float]:
    """Seconds that each computes, of the seed's forward, with weights of so many bytes an element."""
    seed = tokens(SIDE, SIDE), PROMPT_TOKENS
    saves = card.float8_saves() if multiplied == FP8 else 0
    return [module.flop(*seed) / card.rate() - saves * module.product_flop(*seed) for module in modules]


def window_of(modules: list[Module], held: int = BF16) -> int:
    return WINDOW_MODULES * held * max(module.elements() for module in modules)


def row(card: Card, modules: list[Module], riders: int, moved: int, multiplied: int, activation_bytes: int) -> str:
    used = taken_of(modules)
    of_all = sweep(used, [riders * seconds for seconds in times(used, card, multiplied)], card.link.value, moved,
                   multiplied, window_of(modules, multiplied))
    device = of_all.window_bytes + riders * activation_bytes + SLOT_BYTES + WORKSPACE_BYTES[card.sm_9]
    name = {(BF16, BF16): "bfloat16", (FP8, BF16): "float8", (FP8, FP8): "float8, `fp8-compute`"}[moved, multiplied]
    return " | ".join((f"| {card.name}", name, str(riders),
                       f"{of_all.moving_seconds:.2f} s", f"{of_all.computing_seconds:.2f} s", f"{of_all.seconds:.2f} s",
                       f"{of_all.seconds / riders:.2f} s", limited_by(of_all), f"{device / 1e9:.2f} GB",
                       *beside(card, modules, riders, of_all, multiplied)))


def limited_by(all_passes: Pass) -> str:
    return "the link" if all_passes.moving_seconds >= all_passes.computing_seconds else "computing"


def beside(card: Card, modules: list[Module], passes: int, ours: Pass, multiplied: int = BF16) -> tuple[str, str]:
    """So many passes in DiffSynth's way, and how much longer they take: the last columns of a table."""
    alone = times(modules, card, multiplied)
    fast, slow = (passes * synchronous(modules, alone, rate.value, multiplied) for rate in reversed(PAGEABLE))
    return f"{fast:.1f} to {slow:.1f} s", f"{fast / ours.seconds:.1f} to {slow / ours.seconds:.1f} |"


def loop(card: Card, modules: list[Module], moved: int, kept: int = STEPS) -> tuple[Pass, float]:
    """A loop with guidance that has room for the rows of so many steps, and the bytes that it moves."""
    makes = taken_of(modules)
    reads = [module for module in makes if not module.makes_modulation()]
    all_steps = makes + (kept - 1) * reads + (STEPS - kept) * makes
    return (sweep(all_steps, [BRANCHES * seconds for seconds in times(all_steps, card)], card.link.value, moved, BF16,
                  window_of(modules)),
            moved * sum(module.elements() for module in all_steps))


def loop_device_bytes(card: Card, modules: list[Module], window_bytes: int, activation_bytes: int) -> float:
    """With room for the rows of all steps."""
    return (window_bytes + BRANCHES * activation_bytes + STEPS * modulation_bytes(modules) + SLOT_BYTES +
            WORKSPACE_BYTES[card.sm_9])


def loop_row(card: Card, modules: list[Module], moved: int, activation_bytes: int) -> str:
    of_all, bytes_moved = loop(card, modules, moved)
    device = loop_device_bytes(card, modules, of_all.window_bytes, activation_bytes)
    return " | ".join((f"| {card.name}", "bfloat16" if moved == BF16 else "float8", f"{bytes_moved / 1e9:,.0f} GB",
                       f"{of_all.moving_seconds:.1f} s", f"{of_all.computing_seconds:.1f} s", f"{of_all.seconds:.1f} s",
                       limited_by(of_all), f"{device / 1e9:.2f} GB", *beside(card, modules, STEPS * BRANCHES, of_all)))


def rows_by_default(modules: list[Module], budget: float) -> int:
    """The steps of a loop whose rows have room in a budget where nobody says how much of it they get."""
    return min(STEPS, int(min(MOST_MODULATION_BYTES, budget / MODULATION_PART) / modulation_bytes(modules)))


def modulation_by_default(modules: list[Module], activation_bytes: int) -> str:
    """What becomes of the first row where the configuration does not say how much keeps modulation."""
    card = CARDS[0]
    budget = loop_device_bytes(card, modules, loop(card, modules, BF16)[0].window_bytes, activation_bytes)
    kept = rows_by_default(modules, budget)
    of_all, bytes_moved = loop(card, modules, BF16, kept)
    every = STEPS * modulation_bytes(modules)
    return (f"Device bytes hold the rows of all {STEPS} steps, {every / 1e6:.0f} MB, as a server's budget does whose "
            f"`memory.modulation` is that. `auto` is an eighth of the budget, and has room for them from "
            f"{MODULATION_PART * every / 1e9:.2f} GB on: in the {budget / 1e9:.2f} GB of the first row it has room for "
            f"{kept}, the other steps make theirs again, and the loop moves {bytes_moved / 1e9:,.0f} GB in {of_all.seconds:.1f} s.")


def modulation_bytes(modules: list[Module]) -> int:
    """What is kept of a timestep: a row as long as the bias of each module that makes some, the embedding's aside."""
    return BF16 * sum(module.bias for module in taken_of(modules) if re.search(r"_mod\.|norm_out", module.path))


@dataclass(frozen=True)
class Published:
    """A run that somebody published, and what the model makes of it."""
    what: str
    seconds: float
    computed: float

    def row(self) -> str:
        return (f"| {self.what} | {self.seconds:g} s | {self.computed:.2f} s | "
                f"{100 * (self.computed / self.seconds - 1):+.0f} % |")


def published(modules: list[Module]) -> list[Published]:
    def computing(card: Card, forwards: int, image: int, text: int = PROMPT_TOKENS) -> float:
        return forwards * flop_of(modules, image, text) / card.rate()

    side = tokens(SIDE, SIDE)
    alone = times(modules, H100)
    flux = 28 * 74.3e12  # A step of FLUX.1-dev at 1024x1024, computed from its sizes; 28 of them.
    # By blocks, of which several are on the device: its window is not what holds it up.
    streamed = 100 * sweep(modules, alone, H100.link.value, BF16, BF16, 8.5e9).seconds
    return [
        Published("Qwen-Image, layer-wise offload, 100 forwards, 80 GB card: SGLang #16150; taken as an H100", 74.85,
                  streamed),
        Published("the same, resident, the whole pipeline", 15.45, computing(H100, 100, side)),
        Published("Qwen-Image, resident, graphs, 100 forwards: SGLang #36680; taken as an H200, an H100 here", 12.65,
                  computing(H100, 100, side)),
        Published("Qwen-Image-Edit-2511, compiled, a step of 2 forwards, 140 GB card: SGLang #20395; taken as an H200, "
                  "8,192 and 400 tokens", 0.638, computing(H100, 2, 8192, 400)),
        Published("Qwen-Image-Edit at 2048x1366, A100: nunchaku #899; 4,096 tokens of reference assumed", 2.295,
                  computing(A100, 1, tokens(2048, 1366) + 4096)),
        Published("Qwen-Image, float8 weights, RTX 4090D, 40 forwards, Comfy's template; 1328x1328 and an RTX 4090 "
                  "assumed", 71, computing(RTX_4090, 40, tokens(1328, 1328))),
        Published("FLUX.1-dev, 28 steps, H100, compiled: PyTorch's devlog, May 2026", 4.5, flux / H100.rate()),
        Published("the same, eager, as ditserve's operations are", 6.7, flux / H100.rate()),
    ]


def table(columns: tuple[str, ...], rows: list[str]) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *rows]


def billions(modules: list[Module]) -> str:
    return f"{sum(module.elements() for module in modules) / 1e9:.2f}"


def document(modules: list[Module], activation_bytes: int, float8_activation_bytes: int) -> str:
    used = taken_of(modules)
    flop = flop_of(used, tokens(SIDE, SIDE), PROMPT_TOKENS)
    of_width = {BF16: activation_bytes, FP8: float8_activation_bytes}
    rows = [row(card, modules, riders, moved, multiplied, of_width[multiplied])
            for card in CARDS for moved, multiplied in ((BF16, BF16), (FP8, BF16), (FP8, FP8))
            if multiplied == BF16 or card.float8 for riders in (1, 8)]
    loops = [loop_row(card, modules, width, activation_bytes) for card in CARDS for width in (BF16, FP8)]
    kept = sum(module.elements() for module in used if module.makes_modulation())
    lines = [
        f"A pass uses {len(used):,} of {len(modules):,} modules, {billions(used)} of {billions(modules)} billion elements; "
        f"{flop / 1e12:.1f} TFLOP. A window of {window_of(modules) / 1e6:.0f} MB, {activation_bytes / 1e6:.1f} MB of "
        f"activations a rider; with `fp8-compute` {window_of(modules, FP8) / 1e6:.0f} MB and "
        f"{float8_activation_bytes / 1e6:.1f}.", "",
        *table(("card", "weights move as", "riders", "moving", "computing", "all riders", "a rider", "limited by",
                "device bytes", "DiffSynth's way", "times as long"), rows), "",
        f"{STEPS} steps with guidance in one call. {kept / 1e9:.2f} billion elements make modulation and cross once; what "
        f"they make is {modulation_bytes(modules) / 1e6:.1f} MB a step, and stays. (The same took 74.85 s in 8.5 GB by layer-wise "
        "offload, and 15.45 s resident, on an 80 GB card: SGLang #16150, as in the last table.)", "",
        modulation_by_default(modules, activation_bytes), "",
        *table(("card", "weights move as", "moved", "moving", "computing", "the loop", "limited by", "device bytes",
                f"DiffSynth's way, {STEPS * BRANCHES} passes", "times as long"), loops), "",
        *table(("card", "link, GB/s", "TFLOP/s", "of products in float8"),
               [f"| {card.name} | {card.link.value / 1e9:.1f} ({card.link.source}) | {card.rate_source()} | "
                f"{card.float8_source()} |" for card in CARDS]), "",
        f"Unverified too: {COPY_OVERHEAD.value * 1e6:.0f} us a copy besides its bytes; "
        f"{PAGEABLE[0].value / 1e9:.0f} to {PAGEABLE[1].value / 1e9:.0f} GB/s from pageable memory; that DiffSynth "
        "moves bfloat16 where weights rest in float8, as LibTorch converts on the host (that time is left out).", "",
        *table(("published run", "it took", "computed", "off by"), [run.row() for run in published(modules)])]
    return "\n".join(lines)


def read_modules(binaries: Path) -> tuple[list[Module], int, int]:
    """The modules in execution order, and the bytes of activations of a pass that multiplies in bfloat16, and in float8."""
    output = subprocess.run([binaries / "bench_model_modules"], check=True, capture_output=True, text=True).stdout
    first, *lines = output.splitlines()
    modules = []
    for line in lines:
        path, *counts = line.split()
        weight, weight_read, bias, bias_read = (int(count) for count in (*counts, 0, 0)[:4])
        modules.append(Module(path, weight, bias, (weight_read, bias_read)))
    bfloat16, float8 = map(int, first.split())
    return modules, bfloat16, float8


def replaced(text: str, between: str) -> str:
    begin, end = (text.index(marker) for marker in MARKERS)
    return f"{text[:begin]}{MARKERS[0]}\n{between}\n{text[end:]}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True, help="the folder of bench_model_modules")
    parser.add_argument("--write", type=Path, help="a document with the markers")
    arguments = parser.parse_args()
    text = document(*read_modules(arguments.bin))
    print(text)
    if arguments.write:
        arguments.write.write_text(replaced(arguments.write.read_text(), text))


if __name__ == "__main__":
    main()
