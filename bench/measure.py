"""Measures the promises of the design on one machine, in one run, and prints a table of them.

    python bench/measure.py --bin build/release/bin --checkpoint DIR [--full DIR] [--out FILE] [--rows limit riders ...]
    python bench/measure.py --bin build/release/bin --checkpoint DIR --against OTHER_BIN [--rows limit riders ...]

A row's two sides take turns, on the same files; the page cache is dropped before every run that reads them (ditserve
reads past it anyway). The second form puts another build's programs in the place of what the promise is held against,
and marks what is more than 3 % worse than with them. Needs root to drop the cache, and for rows `eager`,
`eager-bfloat16` and `peers` the packages of scripts/parity/requirements.txt.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections import Counter
from pathlib import Path

from program_measures import Lease, Link, Manager, Overhead
from request_measures import (Budgets, Eager, EagerBFloat16, Full, Ledger, Limit, Loops, Modulation, Peer, Riders,
                              SecondStep, Steps)
from rows import Measure, Row

MEASURES = {"limit": Limit, "eager": Eager, "eager-bfloat16": EagerBFloat16, "peers": Peer, "riders": Riders,
            "modulation": Modulation, "steps": Steps, "second-step": SecondStep, "loops": Loops, "budgets": Budgets,
            "ledger": Ledger, "manager": Manager, "link": Link, "lease": Lease, "overhead": Overhead}
WORSE = 1.03
COLUMNS = ("what", "resident at its start", "ditserve", "against", "its figure", "ratio", "target", "limited by")
COLUMNS_OF_BUILDS = ("what", "resident at its start", "this build", "the other build", "ratio", "worse", "limited by")


def measures_of(names: list[str], checkpoint: Path, full: Path | None, sizes: list[int] | None) -> list[Measure]:
    kinds = [(MEASURES[name], checkpoint) for name in names] + ([(Full, full), (SecondStep, full)] if full else [])
    return [kind(folder, size) for kind, folder in kinds
            for size in (sizes if sizes and kind.sizes != Measure.sizes else kind.sizes)]


def spread(values: list[float], unit: str = "", digits: int = 2) -> str:
    """The median, and the least and the largest where there are several."""
    text = f"{statistics.median(values):.{digits}f}{unit and ' ' + unit}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Turn by turn."""
    return [a / b for a, b in zip(ours, theirs)]


def judged(ratio: float, target: tuple[float, float] | None) -> str:
    """The target, in bold if it is missed."""
    if not target:
        return ""
    low, high = target
    text = f"{high:.2f}" if low == 0 else f"{max(low, 0):.2f} to {high:.2f}"
    return text if low <= ratio <= high else f"**{text}, missed**"


def in_turns(first, second, rounds: int) -> list[tuple[list[float], list[float]]]:
    """The values of two sides, row by row. Each begins every other round."""
    turns = []
    for i in range(rounds):
        if i % 2 == 0:
            ours = first()
            turns.append((ours, second()))
        else:
            theirs = second()
            turns.append((first(), theirs))
    return by_row(turns)


def by_row(turns: list) -> list[tuple[list[float], list[float]]]:
    rows = range(len(turns[0][0]))
    return [([ours[row] for ours, _ in turns], [theirs[row] for _, theirs in turns]) for row in rows]


def limited_by(row: Row) -> str:
    """What limited most turns; then what limited the others, if that was something else."""
    return ", ".join(limit for limit, _ in Counter(row.limits).most_common())


def lacking(measures: list[Measure], binaries: Path) -> list[str]:
    """Programs of the measures that a build does not have."""
    return [program for program in dict.fromkeys(measure.program for measure in measures)
            if not (binaries / program).exists()]


def promises(measure: Measure, binaries: Path, rounds: int):
    """The table's lines of a measure."""
    if type(measure).both is Measure.both:
        values = in_turns(lambda: measure.ours(binaries), lambda: measure.theirs(binaries), rounds)
    else:
        values = by_row([measure.both(binaries) for _ in range(rounds)])
    for row, (ours, theirs) in zip(measure.rows, values):
        line = [row.what, row.resident, spread(ours, row.unit), row.against]
        if row.against:
            against = ratios(ours, theirs)
            line += [spread(theirs, row.unit), spread(against), judged(statistics.median(against), row.target)]
        else:
            line += [""] * 3
        yield (*line, limited_by(row))


def comparison(measure: Measure, binaries: Path, other: Path, rounds: int):
    """The lines of a measure in the table of two builds."""
    values = in_turns(lambda: measure.ours(binaries), lambda: measure.ours(other), rounds)
    for row, (ours, theirs) in zip(measure.rows, values):
        ratio, worse = "", ""
        if min(theirs) > 0:
            ratio = spread(ratios(ours, theirs), digits=3)
            by = statistics.median(ratios(theirs, ours) if row.more_is_better else ratios(ours, theirs))
            worse = f"{100 * (by - 1):.0f} %" if by > WORSE else ""
        elif max(ours) > 0:  # As where a build reads nothing.
            worse = "more than nothing"
        yield (row.what, row.resident, spread(ours, row.unit), spread(theirs, row.unit), ratio,
               worse and f"**{worse}**", limited_by(row))


def machine() -> str:
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    sets = [name for flag, name in (("avx512f", "AVX-512"), ("amx_bf16", "AMX")) if flag in facts["flags"].split()]
    wide = f"with {' and '.join(sets)}" if sets else "without AVX-512"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (f"{os.cpu_count()} cores of {facts['model name']} (family {facts['cpu family']}, model {facts['model']}, "
            f"{wide}), {memory:.0f} GiB of memory, {platform.system()} {platform.release().split('-')[0]}")


def commit() -> str:
    """The commit of this tree, from which a build is taken to be."""
    described = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=, with changes"]
    return subprocess.run(described, capture_output=True, text=True).stdout.strip() or "unknown"


def heading(checkpoint: Path, full: Path | None, name: str | None) -> list[str]:
    blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
    columns = COLUMNS_OF_BUILDS if name else COLUMNS
    how = "make bench" + (" FULL=1" if full else "") + (f" AGAINST={name}" if name else "")
    return [f"# Against {name}" if name else "# What was measured", "",
            f"In one run of `{how}` at commit {commit()}, on {machine()}. A seeded checkpoint of {blocks} blocks in "
            "bfloat16, float32 arithmetic, 5 prompt tokens, where nothing else is said. Times are of the forward pass "
            "as the server accounts for it. Both sides took turns; figures are medians (least to largest), ratios are of turns that "
            "followed each other. Less is better in every row but shares of the peak.", "",
            "A time is limited by the disk where ditserve's passes waited for weights more than a tenth of theirs, "
            "else by computing; where that changed from turn to turn, what it was more often stands first. Behind the "
            "simulated link it is the link where moving takes longer than the computing of all riders. The wall time "
            "of a lease is limited by the disk where the executor idled more than a tenth of it: with one rider that "
            "streams it is the time of reading a page, and nothing is promised of it.", "",
            "Where the disk is the limit, a row is as steady as the disk" +
            ("." if name else ", and below 1 where the reader that the limit is taken with, `pread` of 4 MiB from "
             "Python, was slower than the server's."), "",
            "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--full", type=Path, help="a checkpoint of 60 blocks")
    parser.add_argument("--against", type=Path, help="another build's folder of programs")
    parser.add_argument("--name", help="what the other build is called in the heading")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", nargs="*", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--sizes", nargs="*", type=int, help="pixels a side, in place of each row's own")
    parser.add_argument("--rounds", type=int, help="turns, in place of each row's own")
    arguments = parser.parse_args()
    name = arguments.against and (arguments.name or str(arguments.against))
    lines = heading(arguments.checkpoint, arguments.full, name)
    print("\n".join(lines), flush=True)
    measures = measures_of(arguments.rows, arguments.checkpoint, arguments.full, arguments.sizes)
    left_out = lacking(measures, arguments.against) if arguments.against else []
    for measure in measures:
        if measure.program in left_out:
            continue
        rounds = arguments.rounds or measure.rounds
        binaries = arguments.bin.resolve()
        rows = (comparison(measure, binaries, arguments.against.resolve(), rounds) if arguments.against
                else promises(measure, binaries, rounds))
        for row in rows:
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    if left_out:
        lines += ["", f"Left out is what the other build has no program for: {', '.join(left_out)}."]
        print("\n".join(lines[-2:]))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
