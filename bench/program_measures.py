"""What bench/measure.py measures by programs of a build, which print their figures."""

from pathlib import Path

from rows import Measure, Row
from served import output_of


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
    """Riders and loops against the limit, and loops against the way of others: as many sweeps as passes."""

    program = "bench_simulated_link"
    loop = "a loop of 10 steps with guidance, of whose modules the first step alone takes a third"
    bounded = ((1, 1, "bfloat16", "1 rider(s)"), (8, 1, "bfloat16", "8 rider(s)"), (1, 10, "bfloat16", loop),
               (1, 10, "float8", f"{loop}, weights moving as float8"))

    def __init__(self, checkpoint: Path, _size: int):
        super().__init__(checkpoint)
        self.cases, self.peers = [], []  # Of the rows; a peer of None is the limit.
        for ratio in (1, 2, 6):
            for riders, laps, way, what in self.bounded:
                self.add((ratio, riders, laps, way), what, None)
            for riders, laps, way, what in self.bounded[2:]:
                self.add((ratio, riders, laps, way), what, (ratio, 1, 20, "two sweeps"))

    def add(self, case: tuple, what: str, peer: tuple | None) -> None:
        against, target = ("the longer of moving and computing", (0, 1.1)) if peer is None else (
            "20 passes that copy ahead and keep nothing", None)
        self.rows.append(Row(f"simulated link, moving {case[0]} x computing, {what}", "nothing", "s", against, target))
        self.cases.append(case)
        self.peers.append(peer)

    def ours(self, binaries: Path) -> list[float]:
        return self.both(binaries)[0]

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        taken, limit = {}, {}
        for line in output_of(binaries / self.program).splitlines()[2:]:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            # An earlier build has neither this column nor the other ways: its figures of those are 0.
            case = (*map(int, cells[:3]), (cells[6:] or ["bfloat16"])[0])
            limit[case] = float(cells[4].split()[0])
            taken[case] = float(cells[5]) * limit[case]  # Has more digits than the time itself.
        for row, (ratio, riders, laps, way) in zip(self.rows, self.cases):
            moving = ratio / 2 if way == "float8" else ratio
            row.limits.append("the link" if moving > (riders if laps == 1 else 2) else "computing")
        return ([taken.get(case, 0.0) for case in self.cases],
                [limit.get(case, 0.0) if peer is None else taken.get(peer, 0.0)
                 for case, peer in zip(self.cases, self.peers)])


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
