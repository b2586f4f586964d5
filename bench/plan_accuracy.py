"""Prints what `ditctl plan` predicts beside what the passes then take.

    python bench/plan_accuracy.py --bin build/release/bin --checkpoint DIR

A server with budgets of 2 GiB for the device and 6 GiB for the host first measures its pace with a pass at 256x256 and one
at 512x512. Then, of each way to ask, a plan is made before the first pass, and two passes follow: the plan's first pass is
set against the first, its repeated one against the second. Two cases a way, in one run. Each pass is at a timestep of its
own, which the server has not seen, unless its way says that it has.

What else the machine does slows passes and can't be predicted: so each way waits a while until little else runs, and
what share of the processors others took stands beside each case.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
QUIET = 0.1  # Of the processors, for others.


@dataclass(frozen=True)
class Way:
    """How a pass is asked for."""
    profile: str
    height: int
    width: int
    prompt_tokens: int = 5
    batch: int = 1
    limit_gib: float | None = None
    riders: int = 1
    known_timestep: bool = False

    def flags(self) -> list[str]:
        flags = ["--profile", self.profile, "--height", str(self.height), "--width", str(self.width),
                 "--prompt-tokens", str(self.prompt_tokens), "--batch", str(self.batch), "--json"]
        return flags + (["--vram-limit-gib", str(self.limit_gib)] if self.limit_gib is not None else [])

    def __str__(self) -> str:
        parts = [f"{self.profile}, {self.width}x{self.height}"]
        parts += [f"{self.prompt_tokens} prompt tokens"] if self.prompt_tokens != 5 else []
        parts += [f"batch {self.batch}"] if self.batch > 1 else []
        parts += [f"limit {self.limit_gib} GiB"] if self.limit_gib is not None else []
        parts += [f"{self.riders} riders"] if self.riders > 1 else []
        parts += ["known timestep"] if self.known_timestep else []
        return ", ".join(parts)


WARM_UP = (Way("disk", 256, 256), Way("disk", 512, 512))
WAYS = (
    Way("disk", 256, 256),
    Way("disk", 512, 512),
    Way("disk", 256, 384, prompt_tokens=128),
    Way("disk", 256, 256, limit_gib=1),
    Way("disk", 256, 256, riders=4),
    Way("disk", 512, 512, known_timestep=True),
    Way("resident", 384, 384),
    Way("disk-fp8-device", 384, 384),
    Way("fp8-host", 256, 256),
    Way("dynamic", 256, 512),
    Way("dynamic", 256, 512, known_timestep=True),
    Way("host-offload", 256, 256, batch=2),
)


@dataclass(frozen=True)
class Taken:
    disk_read_bytes: int
    device_copy_bytes: int
    peak_device_bytes: int
    seconds: float


def seconds_of(duration: str) -> float:
    return float(duration.rstrip("s"))


def ditctl(binaries: Path, *arguments: str) -> dict:
    done = subprocess.run([binaries / "ditctl", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"ditctl {' '.join(arguments)}: {done.stderr}{done.stdout}")
    return json.loads(done.stdout)


def predicted(planned: dict) -> Taken:
    return Taken(int(planned.get("disk_read_bytes", 0)), int(planned.get("device_copy_bytes", 0)),
                 int(planned["memories"][0]["peak_bytes"]), seconds_of(planned["time"]))


class Timesteps:
    """Each is one that bfloat16 has, so that two of them are two in any dtype."""

    def __init__(self) -> None:
        self.used = 0

    def of(self, way: Way) -> str:
        self.used += not way.known_timestep
        return str(self.used / 128)


def measured(binaries: Path, way: Way, timesteps: Timesteps) -> Taken:
    timestep = timesteps.of(way)
    with ThreadPoolExecutor(way.riders) as pool:
        asked = [pool.submit(ditctl, binaries, "forward", *way.flags(), "--timestep", timestep) for _ in range(way.riders)]
        stats = [each.result()["stats"] for each in asked]
    return Taken(sum(int(each["disk_read_bytes"]) for each in stats),
                 sum(int(each["device_copy_bytes"]) for each in stats),
                 max(int(each["peak_device_bytes"]) for each in stats),
                 max(seconds_of(each["total"]) for each in stats))


class Processors:
    """What others than one process take of the processors, from when this is made."""

    def __init__(self, process: int):
        self.process = process
        self.begun = time.monotonic()
        self.busy, self.own = self.ticks()

    def ticks(self) -> tuple[int, int]:
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        own = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return user + nice + system + irq + softirq + steal, int(own[11]) + int(own[12])

    def others(self) -> float:
        busy, own = self.ticks()
        ticks = (time.monotonic() - self.begun) * os.sysconf("SC_CLK_TCK") * os.cpu_count()
        return max(0.0, (busy - self.busy - (own - self.own)) / ticks)


def await_quiet(process: int, patience_seconds: float) -> None:
    until = time.monotonic() + patience_seconds
    while time.monotonic() < until:
        processors = Processors(process)
        time.sleep(1)
        if processors.others() < QUIET:
            return


def ratio(ours: float, theirs: float) -> float:
    """1 where nothing was predicted and nothing came."""
    return ours / theirs if theirs else (1.0 if not ours else float("inf"))


def gib(count: int) -> str:
    return f"{count / GIB:.3f}"


@dataclass(frozen=True)
class Case:
    name: str
    plan: Taken
    real: Taken
    others: float  # Their share of the processors.

    def ratio_of(self, field: str) -> float:
        return ratio(getattr(self.plan, field), getattr(self.real, field))


def line(case: Case) -> str:
    cells, plan, real = [case.name], case.plan, case.real
    for field in ("disk_read_bytes", "device_copy_bytes", "peak_device_bytes"):
        cells.append(f"{gib(getattr(plan, field))} / {gib(getattr(real, field))}")
    return "| " + " | ".join([*cells, f"{plan.seconds:.2f} / {real.seconds:.2f}",
                              f"{case.ratio_of('seconds'):.2f}", f"{100 * case.others:.0f} %"]) + " |"


def farthest(ratios: list[float]) -> float:
    return max(ratios, key=lambda each: abs(each - 1))


def summary(what: str, cases: list[Case], field: str) -> str:
    ratios = [case.ratio_of(field) for case in cases]
    within = [sum(abs(each - 1) <= tolerance for each in ratios) for tolerance in (0.05, 0.25)]
    return (f"- {what}: predicted / measured is {statistics.median(ratios):.3f} in the median, {farthest(ratios):.3f} at its "
            f"farthest; within 5 % in {within[0]} cases of {len(ratios)}, within 25 % in {within[1]}")


def summarize(cases: list[Case]) -> None:
    print()
    for what, field in (("bytes from disk", "disk_read_bytes"), ("bytes to the device", "device_copy_bytes"),
                        ("device peak", "peak_device_bytes"), ("time", "seconds")):
        print(summary(what, cases, field))
    quiet = [case for case in cases if case.others < QUIET]
    if quiet:
        print(summary(f"time, where others took less than {100 * QUIET:.0f} % of the processors", quiet, "seconds"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--patience", type=float, default=120, help="seconds that each way waits for a quiet machine at most")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DITSERVE_ADDRESS"] = f"unix:{scratch}/socket"
        server = subprocess.Popen(
            [arguments.bin / "ditserve", "--listen", os.environ["DITSERVE_ADDRESS"], "--admin-listen", "none",
             "--metrics-listen", "none", "--device-budget", "2GiB", "--host-budget", "6GiB", "--log-level", "warn",
             "--model", f"model={arguments.checkpoint}"], stdout=subprocess.PIPE)
        try:
            server.stdout.readline()
            await_quiet(server.pid, arguments.patience)
            subprocess.run([arguments.bin / "ditctl", "forward", *WARM_UP[0].flags(), "--wait-seconds", "60"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            timesteps = Timesteps()
            measured(arguments.bin, WARM_UP[1], timesteps)
            print("| asked | from disk, GiB | to the device, GiB | device peak, GiB | seconds | ratio of these | others |")
            print("|" + " --- |" * 7)
            cases = []
            for way in WAYS:
                await_quiet(server.pid, arguments.patience)
                plan = ditctl(arguments.bin, "plan", *way.flags(), "--riders", str(way.riders),
                              *["--known-timestep"] * way.known_timestep)
                for name in ("first", "repeated"):
                    processors = Processors(server.pid)
                    real = measured(arguments.bin, way, timesteps)
                    cases.append(Case(f"{way}: {name}", predicted(plan[f"{name}_pass"]), real, processors.others()))
                    print(line(cases[-1]), flush=True)
            summarize(cases)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
