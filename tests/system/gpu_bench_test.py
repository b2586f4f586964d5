"""bench/gpu.py, with a GPU that computes on the CPU, a driver and an NVML that make their figures up, and no DiffSynth."""

import contextlib
import io
import itertools
import os
import shutil
import subprocess
import sys
import threading
import types
import unittest
import uuid
from pathlib import Path
from unittest import mock

from programs import BIN, ProgramTest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import card  # noqa: E402
import gpu  # noqa: E402
import measure  # noqa: E402

LINK = """#!/bin/sh
printf 'limit 1073741824 2e9\\ncopy 113246208 1.9e9\\ncopy 18874368 1e9\\ncast 1 1e9\\n'
"""
SIDE = 64
MIB = 2**20


class Driver:
    """libcuda, whose first device has this UUID."""

    def __init__(self, of: uuid.UUID):
        self.of = of

    def cuInit(self, _: int) -> int:
        return 0

    def cuDeviceGet(self, device, _: int) -> int:
        device._obj.value = 7
        return 0

    def cuDeviceGetUuid_v2(self, found, _) -> int:
        found[:] = self.of.bytes
        return 0


class Nvml:
    """libnvidia-ml, which knows one device, or slice of one, by its name; and what of it is used, look by look."""

    def __init__(self, name: str, used: list[int]):
        self.name, self.used = name, used

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle) -> int:
        handle._obj.value = 1
        return 0 if name.decode() == self.name else 6

    def nvmlDeviceGetMemoryInfo(self, _, memory) -> int:
        memory._obj.total = 1000 * MIB
        memory._obj.used = self.used.pop(0) if len(self.used) > 1 else self.used[0]
        return 0

    def nvmlDeviceGetName(self, _, name, __: int) -> int:
        name.value = b"A card"
        return 0

    def nvmlSystemGetDriverVersion(self, driver, _: int) -> int:
        driver.value = b"580.0"
        return 0

    def nvmlDeviceGetMaxPcieLinkGeneration(self, *_) -> int:
        return 3  # Not supported, as of a slice.

    nvmlDeviceGetMaxPcieLinkWidth = nvmlDeviceGetMaxPcieLinkGeneration


class Told:
    """A card of which each look finds more, and the fourth less."""

    def __init__(self):
        self.looks = itertools.chain((500, 700, 900), itertools.repeat(800))
        self.looked_four_times = threading.Event()
        self.count = 0

    def memory(self) -> types.SimpleNamespace:
        self.count += 1
        if self.count == 4:
            self.looked_four_times.set()
        return types.SimpleNamespace(used=next(self.looks) * MIB)


class GpuBenchTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for file in (BIN / "ditserve", BIN / "ditctl", Path(os.environ["LOSABLE_DEVICE"])):
            shutil.copy(file, self.bin)
        self.write("bin/bench_device_link", LINK).chmod(0o755)

    def rows(self, measured: measure.Measure) -> list[tuple]:
        return list(measure.promises(measured, self.bin, 1))

    def test_the_link_of_the_largest_pieces_is_held_against_one_large_copy(self):
        copy, cast = self.rows(gpu.Link(self.checkpoint))
        self.assertEqual((copy[2], cast[2]), ("0.53 s", "1.00 s"))
        self.assertEqual((copy[4], cast[4]), ("0.50 s", "0.50 s"))
        self.assertEqual((copy[6], cast[6]), ("1.11", "**1.11, missed**"))

    def test_a_pass_that_is_measured_moves_what_the_first_one_did(self):
        with gpu.serve(self.bin, self.checkpoint) as server:
            first, second = (int(gpu.forward(server, "host-offload", SIDE)["device_copy_bytes"]) for _ in range(2))
        self.assertGreater(first, 0)
        self.assertGreaterEqual(second, 0.9 * first)

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

        with mock.patch.object(gpu, "the_card", Told), mock.patch.object(card, "PERIOD_S", 0.001):
            rows = self.rows(Alone(self.checkpoint, side=SIDE))
        self.assertEqual(len(rows), 6)
        self.assertEqual({row[2] for row in rows[1::2]}, {"0.39 GiB"})  # 900 MiB less 500.

    def test_memory_is_followed_while_something_runs(self):
        told = Told()
        with mock.patch.object(card, "PERIOD_S", 0.001), card.Followed(told) as memory:
            self.assertTrue(told.looked_four_times.wait(60))
        self.assertEqual(memory.peak, 400 * MIB)

    def test_the_card_is_cuda_s_first_or_its_first_slice_by_its_name(self):
        of = uuid.UUID(int=0x1234)
        for kind in ("GPU", "MIG"):
            libraries = {"libcuda.so.1": Driver(of), "libnvidia-ml.so.1": Nvml(f"{kind}-{of}", [3 * MIB])}
            with mock.patch.object(card.ctypes, "CDLL", libraries.__getitem__):
                found = card.Card()
                self.assertEqual(found.memory().used, 3 * MIB)
                self.assertEqual(found.described(), "A card, driver 580.0, PCIe ? x?")
        libraries["libnvidia-ml.so.1"] = Nvml("GPU-another", [0])
        with mock.patch.object(card.ctypes, "CDLL", libraries.__getitem__), self.assertRaises(RuntimeError):
            card.Card()

    def test_a_target_that_was_missed_is_printed_and_ends_with_1(self):
        for rate, code in ((1.9e9, 0), (1e9, 1)):
            class OfRate(gpu.Link):
                def both(self, _: Path) -> tuple[list[float], list[float]]:
                    return [1e9 / rate] * 2, [1e9 / 2e9] * 2

            printed = io.StringIO()
            with (mock.patch.dict(gpu.MEASURES, {"link": OfRate}, clear=True), mock.patch.object(gpu, "heading", lambda _: []),
                  mock.patch.object(sys, "argv", ["gpu.py", "--bin", str(self.bin), "--checkpoint", str(self.checkpoint),
                                                  "--rounds", "1"]),
                  contextlib.redirect_stdout(printed), self.assertRaises(SystemExit) as ended):
                gpu.main()
            self.assertEqual(ended.exception.code, code)
            self.assertEqual("missed" in printed.getvalue(), code == 1)

    def test_where_no_gpu_is_it_is_said_and_no_failure(self):
        done = subprocess.run([ROOT / "scripts/with-gpu", "false"], capture_output=True, text=True)
        if "skipped" in done.stdout or done.returncode == 0:
            self.assertIn("*** skipped: no device", done.stdout)
        else:
            self.assertEqual(done.returncode, 1)  # There is one: `false` was run.


if __name__ == "__main__":
    unittest.main()
