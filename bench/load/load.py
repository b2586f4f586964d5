"""Measures what 256 clients at once are served, and prints a table of it.

    DITSERVE_BIN=... TINY_CHECKPOINT=... python bench/load/load.py [--seconds 60] [--block] [--out FILE]

Fails where a call hangs or ends with a code that is a fault of the server's, where health is not answered, where memory is
held for requests that have ended, or where the server has grown.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from crowd import ROOT, Call, Crowd, counted

sys.path[:0] = [str(ROOT / "tests/system"), str(ROOT / "tests/deploy")]
from http2_attacks import HealthWatch, endpoint, memory_bytes  # noqa: E402
from http2_connection import Target  # noqa: E402
from programs import BIN, Server, tiny_checkpoint  # noqa: E402

CLIENTS, WATCHERS = 248, 8
SPECIAL = CLIENTS // 10
PROFILES = ("disk", "resident", "fp8-host", "dynamic")
BUDGETS = "memory: {device_budget: 4GiB, host_budget: 2GiB}\n"
FAULTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED", "INVALID_ARGUMENT", "UNAVAILABLE"}
MOST_GROWTH_BYTES = 64 << 20
WARM_UP = 2  # Times as long as is measured: threads start, and the heap's arenas meet every size.


@dataclass
class Case:
    """A column of the table."""

    name: str
    checkpoint: Path
    pixels: tuple[int, ...]
    config: str = ""


@dataclass
class Measured:
    calls: list[Call]
    updates: int
    seconds: float
    start_bytes: int
    warm_bytes: int
    peak_bytes: int
    after_bytes: int
    health: HealthWatch
    server_cores: float


def at_rest(server: Server) -> dict:
    """Residency once nobody is served any more."""
    while server.count_requests():
        time.sleep(0.1)
    return server.residency()


def held_for_requests(residency: dict) -> list[tuple[int, int]]:
    return [(int(memory.get("activations_bytes", 0)), int(memory.get("staging_bytes", 0))) for memory in residency["memories"]]


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(case: Case, seconds: float) -> Measured:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.yaml").write_text(BUDGETS + case.config)
        with Server(folder, "--model", f"load={case.checkpoint}", "--config", folder / "config.yaml", "--listen", "127.0.0.1:0",
                    "--log-level", "warn") as server:
            server.address = server.greeting.split()[-1]
            pid = server.process.pid
            start_bytes = memory_bytes(pid)
            mix = {"clients": CLIENTS, "slow": SPECIAL, "cancelled": SPECIAL, "late": SPECIAL, "watchers": WATCHERS,
                   "pixels": case.pixels, "profiles": PROFILES, "priorities": (1, 2)}
            with Crowd(server.address, **mix) as crowd:
                time.sleep(WARM_UP * seconds)
                crowd.stop()
            before, warm_bytes = held_for_requests(at_rest(server)), memory_bytes(pid)
            used = processor_seconds(pid)
            with HealthWatch(Target(*endpoint(server.address))) as health, Crowd(server.address, **mix) as crowd:
                begun = time.monotonic()
                time.sleep(seconds)
                calls = crowd.stop()
                took = time.monotonic() - begun
            used = processor_seconds(pid) - used
            after = at_rest(server)
            measured = Measured(calls, len(crowd.updates), took, start_bytes, warm_bytes, memory_bytes(pid, "VmHWM"),
                                memory_bytes(pid), health, used / took)
            check(measured, before, held_for_requests(after))
            return measured


def check(measured: Measured, before: list, after: list) -> None:
    kinds = {call.kind for call in measured.calls}
    if kinds != {"plain", "slow", "cancelled", "late", "watcher"}:
        raise RuntimeError(f"not every kind of client was there: {kinds}")
    wrong = [call for call in measured.calls if call.code in FAULTS]
    if wrong:
        raise RuntimeError(f"{counted(wrong)}: {wrong[0]}")
    late = [call for call in measured.calls if call.code == "DEADLINE_EXCEEDED" and call.kind != "late"]
    if late:
        raise RuntimeError(f"{len(late)} calls hung: {late[0]}")
    if measured.health.failures:
        raise RuntimeError(f"health: {measured.health.failures}")
    if after != before:
        raise RuntimeError(f"activations and staging of the memories: {before} before, {after} after")
    if measured.after_bytes - measured.warm_bytes > MOST_GROWTH_BYTES:
        raise RuntimeError(f"the server grew from {measured.warm_bytes} to {measured.after_bytes} bytes")


def percentiles(values: list[float]) -> str:
    """In milliseconds."""
    values = sorted(values)
    p50, p99 = (1e3 * values[int(len(values) * part)] for part in (0.5, 0.99))
    return f"{p50:,.1f}, {p99:,.1f} ms"


def figures(measured: Measured) -> dict[str, str]:
    calls = [call for call in measured.calls if call.kind != "watcher"]
    answered = [call for call in calls if call.code == "OK"]
    quick = [call for call in answered if call.kind != "slow"]
    slow = [call for call in answered if call.kind == "slow"]
    refused = [call for call in calls if call.code == "RESOURCE_EXHAUSTED"]
    lines = {"calls that ended": f"{len(calls):,} in {measured.seconds:.0f} s",
             "answered": f"{len(answered) / measured.seconds:.1f} a second"}
    for code in ("OK", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED"):
        lines[f"`{code}`"] = f"{sum(call.code == code for call in calls):,}"
    lines["other codes"] = counted([call for call in calls if f"`{call.code}`" not in lines]) or "none"
    lines["admission (`stats.queue`) of the answered, p50, p99"] = percentiles([call.queue for call in answered])
    lines["the whole, as the client sees it, p50, p99"] = percentiles([call.seconds for call in quick])
    lines["the whole, slow readers, p50, p99"] = percentiles([call.seconds for call in slow]) if slow else "none was answered"
    lines["refusals, as the client sees them, p50, p99"] = percentiles([call.seconds for call in refused]) if refused else "none"
    lines["health, on a connection of its own, p50, p99"] = percentiles(measured.health.latencies)
    lines["health checks, failed"] = f"{len(measured.health.latencies):,}, {len(measured.health.failures)}"
    lines["updates of residency, to 8 watchers"] = f"{measured.updates:,}"
    lines["memory of the server: at its start, warm, peak, after"] = ", ".join(
        f"{size / 2**20:.0f}" for size in (measured.start_bytes, measured.warm_bytes, measured.peak_bytes, measured.after_bytes)) + " MiB"
    lines["processor time of the server"] = f"{measured.server_cores:.2f} cores"
    return lines


def machine() -> str:
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    return f"{os.cpu_count()} cores of {facts['model name']}, {platform.system()} {platform.release().split('-')[0]}"


def heading(cases: list[Case], seconds: float, load: float) -> list[str]:
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always"], capture_output=True, text=True).stdout.strip()
    return ["# 256 clients at once", "",
            f"By `make load FULL=1 SECONDS={seconds:.0f}` at commit {commit or 'unknown'}, on {machine()}. The clients ran there too, and what else did: "
            f"the load average was {load:.1f} before any of it began.", "",
            f"Each client has a TCP connection of its own and asks again when it was answered, or, where it was refused, after the "
            f"time the refusal names. {CLIENTS} ask for forward passes, of sizes, profiles ({', '.join(PROFILES)}) and both "
            f"priorities at random. Of these {SPECIAL} read slowly, by `ForwardStream` through a window of 1 KiB, with 0.2 s before "
            f"each message; {SPECIAL} cancel within 0.5 s, at random; {SPECIAL} have deadlines of up to 0.5 s, at random. "
            f"{WATCHERS} watch residency, twice a second. Health is asked 100 times a second at most, on one more connection.", "",
            "The server is warm after the same load for twice as long, which is not counted. Every call ended with an "
            "answer or an error, none of them a fault of the server; afterwards no memory is held for requests, and the server is at "
            f"most {MOST_GROWTH_BYTES >> 20} MiB larger than warm. Else the program fails, and writes no table.", "",
            "| | " + " | ".join(case.name for case in cases) + " |", "| --- |" + " --- |" * len(cases)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--block", action="store_true", help="also a block of the model's true width (0.7 GB)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        tiny = tiny_checkpoint(Path(scratch) / "tiny")
        cases = [Case("tiny model", tiny, (64, 256, 512)),
                 Case("tiny model, `max_queue: 256`", tiny, (64, 256, 512), "requests: {max_queue: 256}\n")]
        if arguments.block:
            block = Path(scratch) / "block"
            subprocess.run([BIN / "ditctl", "make-checkpoint", "--blocks", "1", "--out", block], check=True, stderr=subprocess.DEVNULL)
            cases.append(Case("1 block of true width", block, (64, 128)))
        columns = []
        for case in cases:
            columns.append(figures(measure(case, arguments.seconds)))
            print(case.name, *(f"  {name}: {value}" for name, value in columns[-1].items()), sep="\n", flush=True)
    lines = heading(cases, arguments.seconds, load)
    lines += [f"| {name} | " + " | ".join(column[name] for column in columns) + " |" for name in columns[0]]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
