"""simulate: flags, and what it tells of the seeds that it ran."""

import subprocess
import unittest

from programs import BIN


class SimulateTest(unittest.TestCase):
    def simulate(self, *flags: str) -> subprocess.CompletedProcess:
        return subprocess.run([BIN / "simulate", *flags], capture_output=True, text=True)

    def assert_refused(self, flag: str, why: str) -> None:
        done = self.simulate(flag)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (2, "", f"simulate: {why}\n"))

    def test_a_wrong_value_is_refused_by_the_name_of_its_flag(self):
        self.assert_refused("--seeds=1e6", "--seeds: expected an integer, found '1e6'")
        self.assert_refused("--seeds=abc", "--seeds: expected an integer, found 'abc'")
        self.assert_refused("--seeds=0", "--seeds: expected at least 1, found 0")
        self.assert_refused("--from=-1", "--from: expected at least 0, found -1")
        self.assert_refused("--shrink=2", "--shrink: expected at least 0 and at most 1, found 2")
        self.assert_refused("--kind=odd", "--kind: expected one of calm, faults, refusals, real, found 'odd'")

    def test_a_wrong_flag_is_wrong_usage(self):
        done = self.simulate("--seed=1")
        self.assertEqual(done.returncode, 2)
        self.assertIn("unknown flag --seed; valid: --", done.stderr)

    def test_as_many_seeds_run_as_are_told(self):
        done = self.simulate("--from=5", "--seeds=3", "--kind=calm")
        self.assertEqual(done.returncode, 0, done)
        self.assertIn("done: 3 seeds from 5, ", done.stdout)

    def test_one_seed_is_told_load_by_load(self):
        done = self.simulate("--kind=calm", "--trace=1")
        self.assertEqual(done.returncode, 0, done)
        self.assertRegex(done.stdout, r"(?m)^\d+ load 1 of \d+\.\d+ for device \d+, \d+ bytes, from disk$")
        self.assertTrue(done.stdout.endswith("OK\n"))


if __name__ == "__main__":
    unittest.main()
