"""tests/gpu/run, with a gpu_test of which one test ends its process, and a compute-sanitizer that writes down what it is asked."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GPU_TEST = """#!/usr/bin/env bash
case "$*" in
*--gtest_list_tests*) printf 'GpuTest.\\n  First\\n  Ends\\n  Fails\\n  Last\\n' ; exit ;;
*GpuTest.Ends) echo 'On a card:'; kill -SEGV $$ ;;
*GpuTest.Fails) echo 'On a card:'; echo '| Fails | **failed** | less |'; exit 1 ;;
*GpuTest.First) echo 'On a card:'; echo '| First | passed | this |' ;;
*GpuTest.Last) echo 'On a card:'; echo '| Last | passed | that |' ;;
*) echo "| Sanitized | passed | $* |" ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
echo "$*" >>"$RECORD"
case "$*" in
*" $UNSUPPORTED "*) echo '========= Error: Device not supported. Please refer to the documentation'; exit 1 ;;
*" $BROKEN "*) exit 9 ;;
*" $IDLE "*) exit 0 ;;
esac
while [ "${1#*/gpu_test}" = "$1" ]; do shift; done
exec "$@"
"""


class GpuRunTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.bin = Path(scratch.name)
        for name, text in (("gpu_test", GPU_TEST), ("compute-sanitizer", SANITIZER),
                           ("nvcc", "#!/bin/sh\necho 'release 13.0, V13.0.88'\n")):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def run_all(self, **environment: str) -> subprocess.CompletedProcess:
        settings = {"UNSUPPORTED": "none", "BROKEN": "none", "IDLE": "none", **environment}
        return subprocess.run([ROOT / "tests/gpu/run", self.bin, "false"], capture_output=True, text=True,
                              env={"PATH": f"{self.bin}:{os.environ['PATH']}", "CUDACXX": str(self.bin / "nvcc"),
                                   "RECORD": str(self.bin / "record"), **settings})

    def test_a_test_that_ends_its_process_costs_no_other_and_no_row(self):
        done = self.run_all()
        table = done.stdout[done.stdout.rindex("On a card:"):].splitlines()
        self.assertEqual(table[2:8], ["| test | result | seen |", "| --- | --- | --- |", "| First | passed | this |",
                                      "| Ends | **failed** | its process ended with 139 |",
                                      "| Fails | **failed** | less |", "| Last | passed | that |"])
        self.assertEqual(table[8:], ["*** FAILED: GpuTest.Ends ***", "*** FAILED: GpuTest.Fails ***"])
        self.assertEqual(done.returncode, 1)

    def test_races_and_barriers_are_looked_for_in_our_own_kernels(self):
        self.run_all()
        asked = (self.bin / "record").read_text().splitlines()
        self.assertEqual(len(asked), 5)
        for tool in ("racecheck", "synccheck"):
            cast, rows = [line for line in asked if f"--tool {tool} " in line]
            self.assertIn("--kernel-regex kns=CastKernel ", cast)
            self.assertIn("GpuTest.Casts*", cast)
            self.assertIn("--kernel-regex kns=Float8OperandsKernel ", rows)
            self.assertIn("GpuTest.Rows*", rows)
        (memory,) = [line for line in asked if "--tool memcheck " in line]
        self.assertIn("GpuTest.Rows*", memory)
        self.assertNotIn("--kernel-regex", memory)

    def test_a_tool_that_knows_no_such_device_is_skipped_and_any_other_end_is_a_failure(self):
        skipped = self.run_all(UNSUPPORTED="racecheck")
        self.assertIn("*** skipped: compute-sanitizer, racecheck", skipped.stdout)
        self.assertNotIn("FAILED: compute-sanitizer", skipped.stdout)
        self.assertIn("FAILED: compute-sanitizer, memcheck, with 9", self.run_all(BROKEN="memcheck").stdout)
        self.assertIn("no test was run", self.run_all(IDLE="synccheck").stdout)


if __name__ == "__main__":
    unittest.main()
