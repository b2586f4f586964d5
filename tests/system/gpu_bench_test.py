"""bench/gpu.py, with a GPU that computes on the CPU, an nvidia-smi that makes its figures up, and no DiffSynth."""

import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

from programs import BIN, ProgramTest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import gpu  # noqa: E402
import measure  # noqa: E402

SMI = """#!/usr/bin/env bash
case "$*" in
*-lms*) for mib in 700 900 800; do echo $mib; done; exec sleep infinity ;;
*memory.used*) echo 500 ;;
*) echo 'A card, 580.0, 5, 16' ;;
esac
"""
LINK = """#!/bin/sh
printf 'copy 113246208 2e9\\ncopy 18874368 1e9\\ncast 1 4e9\\n'
"""
SIDE = 64


class GpuBenchTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for file in (BIN / "ditserve", BIN / "ditctl", Path(os.environ["LOSABLE_DEVICE"])):
            shutil.copy(file, self.bin)
        self.write("bin/bench_device_link", LINK)
        self.write("bin/nvidia-smi", SMI)
        for name in ("bench_device_link", "nvidia-smi"):
            (self.bin / name).chmod(0o755)
        path = os.environ["PATH"]
        self.addCleanup(os.environ.__setitem__, "PATH", path)
        os.environ["PATH"] = f"{self.bin}:{path}"

    def rows(self, measured: measure.Measure) -> list[tuple]:
        return list(measure.promises(measured, self.bin, 1))

    def test_the_link_is_that_of_the_largest_pieces(self):
        copy, cast = self.rows(gpu.Link(self.checkpoint))
        self.assertEqual((copy[2], cast[2]), ("0.50 s", "0.25 s"))

    def test_streamed_passes_are_held_against_the_longer_of_moving_and_computing(self):
        rows = self.rows(gpu.Streamed(self.checkpoint, side=SIDE))
        self.assertEqual([row[0] for row in rows], ["host-offload, 1 rider(s)", "host-offload, 8 rider(s)",
                                                    "fp8-host, 1 rider(s)", "fp8-host, 8 rider(s)"])
        for row in rows:
            self.assertIn(row[-1], ("the link", "computing"))

    def test_the_seed_s_runs_have_their_time_and_the_card_s_memory(self):
        class Alone(gpu.Seed):
            def theirs(self, _: Path) -> list[float]:
                return [1.0] * len(self.rows)

        rows = self.rows(Alone(self.checkpoint, side=SIDE))
        self.assertEqual(len(rows), 6)
        self.assertEqual({row[2] for row in rows[1::2]}, {"0.39 GiB"})  # 900 MiB less 500.

    def test_where_no_gpu_is_it_is_said_and_no_failure(self):
        done = subprocess.run([ROOT / "scripts/with-gpu", "false"], capture_output=True, text=True)
        if "skipped" in done.stdout or done.returncode == 0:
            self.assertIn("*** skipped: no device", done.stdout)
        else:
            self.assertEqual(done.returncode, 1)  # There is one: `false` was run.


if __name__ == "__main__":
    unittest.main()
