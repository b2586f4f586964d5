"""bench/measure.py with measures that cost nothing: turns, medians, targets, the comparison of builds."""

import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import measure  # noqa: E402
from programs import BIN  # noqa: E402
from rows import Measure, Row  # noqa: E402
from served import output_of, what_limited  # noqa: E402

OURS, OTHER = Path("/ours"), Path("/other")


class Scripted(Measure):
    """Two rows: the first has the values given, the second is always 1."""

    def __init__(self, ours: dict[Path, list[float]], theirs: list[float] = (), target: tuple | None = None):
        super().__init__(Path("/checkpoint"))
        self.rows = [Row("a pass", "nothing", "s", "a peer", target), Row("another", "all", "MiB", "a peer")]
        self.left = {side: list(values) for side, values in ours.items()} | {"theirs": list(theirs)}
        self.turns = []

    def take(self, side) -> list[float]:
        self.turns.append(side)
        return [self.left[side].pop(0), 1.0]

    def ours(self, binaries: Path) -> list[float]:
        return self.take(binaries)

    def theirs(self, _: Path) -> list[float]:
        return self.take("theirs")


class MeasureTest(unittest.TestCase):
    def test_both_sides_take_turns_and_both_figures_are_printed(self):
        scripted = Scripted({OURS: [1, 2, 9]}, [2, 2, 3], (0, 1.1))
        scripted.rows[0].limits = ["computing", "the disk", "the disk"]
        first, second = measure.promises(scripted, OURS, 3)
        self.assertEqual(scripted.turns, [OURS, "theirs", "theirs", OURS, OURS, "theirs"])
        self.assertEqual(first, ("a pass", "nothing", "2.00 s (1.00 to 9.00)", "a peer", "2.00 s (2.00 to 3.00)",
                                 "1.00 (0.50 to 3.00)", "1.10", "the disk, computing"))
        self.assertEqual((second[2], second[-1]), ("1.00 MiB (1.00 to 1.00)", ""))

    def test_a_missed_target_is_marked(self):
        (row, _) = measure.promises(Scripted({OURS: [3]}, [2], (0, 1.1)), OURS, 1)
        self.assertEqual(row[5:7], ("1.50", "**1.10, missed**"))
        (row, _) = measure.promises(Scripted({OURS: [3]}, [2], (1.6, 1.7)), OURS, 1)
        self.assertEqual(row[6], "**1.60 to 1.70, missed**")

    def test_two_builds_take_turns_and_only_what_is_more_than_3_percent_worse_is_marked(self):
        scripted = Scripted({OURS: [104, 104, 104], OTHER: [100, 100, 50]})
        scripted.rows[0].limits = ["the disk"]
        worse, equal = measure.comparison(scripted, OURS, OTHER, 3)
        self.assertEqual(scripted.turns, [OURS, OTHER, OTHER, OURS, OURS, OTHER])
        self.assertEqual(worse[2:], ("104.00 s (104.00 to 104.00)", "100.00 s (50.00 to 100.00)",
                                     "1.040 (1.040 to 2.080)", "**4 %**", "the disk"))
        self.assertEqual(equal[-2:], ("", ""))
        (row, _) = measure.comparison(Scripted({OURS: [102], OTHER: [100]}), OURS, OTHER, 1)
        self.assertEqual(row[-2], "")

    def test_where_more_is_better_less_is_marked(self):
        for ours, marked in ((104, ""), (90, "**11 %**")):
            scripted = Scripted({OURS: [ours], OTHER: [100]})
            scripted.rows[0].more_is_better = True
            (row, _) = measure.comparison(scripted, OURS, OTHER, 1)
            self.assertEqual(row[-2], marked)

    def test_a_pass_is_told_as_a_share_of_the_peak_of_its_arithmetic(self):
        checkpoint = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (checkpoint / "config.json").write_text('{"num_layers": 6}')
        for kind, arithmetic in ((measure.Eager, "float32"), (measure.EagerBFloat16, "bfloat16")):
            made = kind(checkpoint, 1024)
            # 226 MFLOP a token and block, and attention.
            self.assertAlmostEqual(made.gflop / (6 * (0.2265 * 4101 + 4e-9 * 4101**2 * 3072)), 1, places=3)
            self.assertTrue(made.rows[1].more_is_better)
            self.assertGreater(float(output_of(BIN / "bench_product_peak", arithmetic)), 0)

    def test_a_build_that_reads_what_the_other_need_not_is_marked(self):
        (row, _) = measure.comparison(Scripted({OURS: [5], OTHER: [0]}), OURS, OTHER, 1)
        self.assertEqual(row[-3:-1], ("", "**more than nothing**"))
        (row, _) = measure.comparison(Scripted({OURS: [0], OTHER: [0]}), OURS, OTHER, 1)
        self.assertEqual(row[-2], "")

    def test_a_row_may_be_held_against_nothing(self):
        scripted = Scripted({OURS: [3]}, [0])
        scripted.rows[0].against = ""
        (row, _) = measure.promises(scripted, OURS, 1)
        self.assertEqual(row[2:], ("3.00 s", "", "", "", "", ""))

    def test_a_pass_that_waited_for_weights_was_limited_by_the_disk(self):
        waited = [{"stall": stall, "total": "2s"} for stall in ("0.3s", "0s")]
        self.assertEqual(what_limited(waited[0]), "the disk")
        self.assertEqual(what_limited(*waited), "computing")

    def test_a_program_that_the_other_build_lacks_is_found(self):
        other = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (other / "ditserve").touch()
        made = [Scripted({}), measure.MEASURES["lease"](Path("/checkpoint"), 0)]
        self.assertEqual(measure.lacking(made, other), ["bench_lease_cost"])

    def test_loops_behind_the_link_are_told_beside_the_limit_and_beside_the_way_of_others(self):
        link = measure.MEASURES["link"](Path("/checkpoint"), 0)
        lines = [f"| {ratio} | {riders} | {laps} | 3.00 s | 2.00 s | 1.500 | {way} |"
                 for ratio, riders, laps, way in {*link.cases, *filter(None, link.peers)}]
        ours, theirs = link.both(self.printing("bench_simulated_link", "head", "---", *lines))
        self.assertEqual((ours, theirs), ([3.0] * 18, [3.0 if peer else 2.0 for peer in link.peers]))
        self.assertEqual([bool(row.target) for row in link.rows], [peer is None for peer in link.peers])

    def test_an_earlier_build_has_neither_float8_nor_the_way_of_others_behind_the_link(self):
        link = measure.MEASURES["link"](Path("/checkpoint"), 0)
        lines = [f"| {ratio} | {riders} | {laps} | 3.00 s | 2.00 s | 1.500 |"
                 for ratio, riders, laps, way in link.cases if way == "bfloat16"]
        ours = link.ours(self.printing("bench_simulated_link", "head", "---", *lines))
        self.assertEqual(ours, [3.0 if case[-1] == "bfloat16" else 0.0 for case in link.cases])

    def printing(self, program: str, *lines: str) -> Path:
        """A folder with a program that prints these."""
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (folder / "printed").write_text("\n".join(lines))
        (folder / program).write_text(f"#!/bin/sh\ncat '{folder}/printed'\n")
        (folder / program).chmod(0o755)
        return folder

    def test_every_lease_that_is_promised_has_its_bound(self):
        lease = measure.MEASURES["lease"](Path("/checkpoint"), 0)
        held = [(row.what, bound) for row, bound in zip(lease.rows, lease.theirs(OURS)) if bound]
        self.assertEqual([row.what for row in lease.rows if row.against], [what for what, _ in held])
        executor = [bound for what, bound in held if "executor" in what]
        self.assertEqual((executor, len(held)), ([6, 20, 6, 20], 7))

    def test_the_whole_model_s_peak_is_promised(self):
        checkpoint = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (checkpoint / "config.json").write_text('{"num_layers": 60}')
        peak = measure.Full(checkpoint, 1024).rows[-1]
        self.assertEqual((peak.unit, peak.against, peak.target), ("MiB", "the promise", (0, 1)))

    def test_every_measure_is_made_for_each_of_its_sizes(self):
        checkpoint = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (checkpoint / "config.json").write_text('{"num_layers": 6}')
        whole = measure.measures_of(list(measure.MEASURES), checkpoint, checkpoint, None)
        self.assertEqual([type(made).__name__ for made in whole],
                         ["Limit"] * 2 + ["Eager"] * 2 + ["EagerBFloat16"] * 2 + ["Peer"] * 3 +
                         ["Riders", "Modulation"] + ["Steps"] * 2 + ["SecondStep"] +
                         ["Loops", "Budgets", "Ledger", "Manager", "Link", "Lease", "Overhead"] +
                         ["Full"] * 2 + ["SecondStep"])
        small = measure.measures_of(["limit", "budgets"], checkpoint, None, [64, 128])
        self.assertEqual([type(made).__name__ for made in small], ["Limit", "Limit", "Budgets"])


if __name__ == "__main__":
    unittest.main()
