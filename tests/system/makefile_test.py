"""The Makefile with every program that it calls replaced by one that writes down its arguments."""

import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Prints the folder that fetch-libtorch would, and writes down: the program's name and its arguments, one a line.
RECORDER = """#!/usr/bin/env bash
{ echo "- ${0##*/}"; for argument; do echo "$argument"; done; } >>"$RECORD"
echo '/libtorch of ours'
"""


def targets() -> list[str]:
    return re.findall(r"^([a-z-]+):.*  ## ", (ROOT / "Makefile").read_text(), re.M)


class MakefileTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name) / "a tree"
        self.cache = Path(scratch.name) / "a cache"
        self.record = Path(scratch.name) / "record"
        self.record.touch()
        scripts = [script.relative_to(ROOT) for folder in ("scripts", "bench") for script in (ROOT / folder).iterdir()
                   if script.is_file()]
        programs = [f"tools/{name}" for name in ("cmake", "ctest", "cpack")]
        programs += ["tests/gpu/run"]
        programs += [f"build/{preset}/bin/{name}" for preset in ("release", "asan") for name in ("ditserve", "ditctl")]
        for program in [self.folder / program for program in (*scripts, *programs)] + [self.cache / "parity/bin/python"]:
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(RECORDER)
            program.chmod(0o755)
        (self.folder / "Makefile").write_text((ROOT / "Makefile").read_text())

    def make(self, *arguments: str) -> list[list[str]]:
        """Runs make; returns what it called, in order."""
        environment = {"PATH": f"{self.folder}/tools:{os.environ['PATH']}", "RECORD": str(self.record)}
        self.record.write_text("")
        done = subprocess.run(["make", *arguments], cwd=self.folder, env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [call.split("\n") for call in ("\n" + self.record.read_text()).rstrip("\n").split("\n- ")[1:]]

    def test_values_with_spaces_stay_whole(self):
        cache = f"DITSERVE_CACHE={self.cache}"
        for arguments, expected in (
                (("run", "MODEL=/a model"), ["run-demo", "build/release/bin", f"{self.cache}/demo", "/a model"]),
                (("serve", "MODEL=/a model", "CONFIG=a file"),
                 ["ditserve", "--config", "a file", "--model", "qwen-image=/a model"]),
                (("install", "PREFIX=/a prefix"), ["cmake", "--install", "build/release", "--prefix", "/a prefix"]),
                (("fuzz", "SECONDS=5"), ["fuzz", "build/fuzz", f"{self.cache}/fuzz", "5"]),
                (("soak", "MINUTES=1"), ["soak", "build/release/bin", f"{self.cache}/soak", "1"]),
                (("parity",), ["python", "scripts/parity/live.py", "--bin", "build/release/bin"]),
                (("test",), ["python-environment", f"{self.cache}/parity", "scripts/parity/requirements.txt"]),
                (("bench", "AGAINST=/other bin"), ["run", "build/release/bin", "--against", "/other bin"])):
            with self.subTest(arguments):
                self.assertIn(expected, self.make(*arguments, cache))

    def test_a_value_may_hold_quotes(self):
        calls = self.make("run", "MODEL=/it's \"mine\"", f"DITSERVE_CACHE={self.cache}")
        self.assertEqual(calls[-1][-1], "/it's \"mine\"")

    def test_only_a_run_of_all_rows_writes_a_table(self):
        shutil.copy(ROOT / "bench/run", self.folder / "bench/run")
        other = self.folder / "build/asan/bin"
        for arguments, expected in (([], ["RESULTS.md"]), ([f"AGAINST={other}"], ["COMPARED.md"]), (["ROWS=link"], []),
                                    (["ROWS=limit link", f"AGAINST={other}"], [])):
            with self.subTest(arguments):
                (measure,) = [call for call in self.make("bench", *arguments, f"DITSERVE_CACHE={self.cache}")
                              if call[:1] == ["python"]]
                self.assertEqual([Path(at).name for flag, at in zip(measure, measure[1:]) if flag == "--out"], expected)

    def test_lint_builds_no_more_than_what_it_reads(self):
        calls = self.make("lint", "SINCE=HEAD~1")
        self.assertEqual([call[-2:] for call in calls if "--build" in call], [["--target", "ditserve_generated"]])
        self.assertEqual(calls[-1], ["lint", "build/dev", "HEAD~1"])

    def test_what_needs_a_gpu_is_built_where_there_is_one_with_the_libraries_that_it_runs_on(self):
        for target, found, last in (("test-gpu", "run-gpu-tests", "run"), ("bench-gpu", "run-gpu-bench", "run-gpu")):
            with self.subTest(target):
                self.assertEqual(self.make(target), [["with-gpu", "make", found]])
                calls = self.make(found, f"DITSERVE_CACHE={self.cache}")
                self.assertEqual(calls[-1], [last, "build/gpu/bin", f"{self.cache}/parity/bin/python"])
                self.assertIn(["cmake", "--preset", "cuda", "-B", "build/gpu",
                               f"-DLIBTORCH={self.cache}/parity/lib/python3*/site-packages/torch"], calls)

    def test_where_libtorch_is_named_what_needs_a_gpu_needs_no_packages(self):
        for script in ("setup", "python-environment"):
            (self.folder / "scripts" / script).write_text("#!/bin/sh\nexit 1\n")
        cache = f"DITSERVE_CACHE={self.cache}"
        for target, last in (("run-gpu-tests", "run"), ("run-gpu-bench", "run-gpu")):
            calls = self.make(target, cache, "LIBTORCH=/a libtorch")
            self.assertIn(["cmake", "--preset", "cuda", "-B", "build/gpu", "-DLIBTORCH=/a libtorch"], calls)
            self.assertEqual(calls[-1], [last, "build/gpu/bin", f"{self.cache}/parity/bin/python"])
            with self.assertRaises(AssertionError):
                self.make(target, cache)

    def test_a_gpu_is_measured_in_the_rows_and_rounds_that_are_asked_for(self):
        calls = self.make("run-gpu-bench", f"DITSERVE_CACHE={self.cache}", "ROWS=link streamed", "ROUNDS=1")
        self.assertEqual(calls[-1], ["run-gpu", "build/gpu/bin", f"{self.cache}/parity/bin/python",
                                     "--rows", "link", "streamed", "--rounds", "1"])

    def test_clean_keeps_what_was_fetched(self):
        kept = self.folder / "build/cache/libtorch"
        kept.mkdir(parents=True)
        self.make("clean")
        self.assertEqual(list((self.folder / "build").iterdir()), [kept.parent])

    def test_every_target_is_checked_by_check_targets(self):
        checked = subprocess.run([ROOT / "scripts/check-targets", "--list"], capture_output=True, text=True, check=True)
        self.assertEqual(sorted(checked.stdout.split()), sorted(set(targets()) - {"check-targets"}))


if __name__ == "__main__":
    unittest.main()
