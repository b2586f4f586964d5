"""A ditserve whose device is lost, by a device module that can lose it."""

import os
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

from programs import BIN, ProgramTest, Server

sys.path.insert(0, str(Path(__file__).parent.parent / "deploy"))
from http2_attacks import endpoint  # noqa: E402
from http2_connection import NOT_SERVING, SERVING, HealthWatcher, Target  # noqa: E402

LONG = 4096  # Pixels a side of a pass that takes seconds on one thread: it is under way when the loss is seen.


class DeviceLossTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for file in (BIN / "ditserve", BIN / "ditctl", Path(os.environ["LOSABLE_DEVICE"])):
            shutil.copy(file, self.bin)
        self.lost = self.folder / "lost"
        self.hung = self.folder / "hung"
        self.blocked = self.folder / "blocked"
        for variable, file in (("LOSES_DEVICE", self.lost), ("HANGS_DEVICE", self.hung), ("BLOCKS_DEVICE", self.blocked)):
            os.environ[variable] = str(file)
            self.addCleanup(os.environ.pop, variable)

    def serve(self) -> Server:
        config = self.write("cuda.yaml", "device: {name: 'cuda:0', threads: 1}\nlisten: {health_address: '127.0.0.1:0'}\n"
                            "memory: {device_budget: 1GiB, host_budget: 1GiB}\n")
        return Server(self.folder, "--model", f"tiny={self.checkpoint}", "--config", config, binaries=self.bin)

    def watch(self, server: Server) -> HealthWatcher:
        """Health, which is served by now."""
        address = re.search(r"health on (\S+)", server.await_log("health on"))[1]
        watcher = self.enterContext(HealthWatcher(Target(*endpoint(address))))
        watcher.await_told(SERVING)
        return watcher

    def test_everything_ends_with_why(self):
        with self.serve() as server:
            self.assertEqual(server.ditctl("forward", "--height", "64", "--width", "64").returncode, 0)
            health = self.watch(server)
            under_way = server.forwards_under_way(LONG, 2)
            self.lost.touch()
            health.await_told(SERVING, NOT_SERVING)
            ended = [request.communicate()[1] for request in under_way if request.wait() != 0]
            self.assertTrue(ended, "none was ended")
            for errors in ended:
                self.assertRegex(errors, "UNAVAILABLE.*cuda:0 is lost: it fell from the bus")
            self.assertEqual(server.process.wait(), 1)
            self.assertIn("cuda:0 is lost: it fell from the bus", Path(server.log.name).read_text().splitlines()[-1])

    def test_a_device_that_hangs_is_lost(self):
        with self.serve() as server:
            self.assertEqual(server.ditctl("forward", "--height", "64", "--width", "64").returncode, 0)
            health = self.watch(server)
            self.hung.touch()
            hanging = server.forward(64)
            health.await_told(SERVING, NOT_SERVING)
            _, errors = hanging.communicate()
            self.assertEqual(hanging.returncode, 1)
            self.assertRegex(errors, "UNAVAILABLE.*is lost: it has not got on for")
            self.assertEqual(server.process.wait(), 1)
            self.assertIn("is lost: it has not got on for", Path(server.log.name).read_text().splitlines()[-1])

    def test_a_device_whose_calls_never_return_is_lost(self):
        with self.serve() as server:
            self.assertEqual(server.ditctl("forward", "--height", "64", "--width", "64").returncode, 0)
            health = self.watch(server)
            under_way = server.forwards_under_way(LONG, 2)
            self.blocked.touch()
            health.await_told(SERVING, NOT_SERVING)
            errors = "".join(request.communicate()[1] for request in under_way)
            self.assertRegex(errors, "UNAVAILABLE.*is lost: it has not answered for")
            self.assertEqual(server.process.wait(), 1)
            self.assertIn("is lost: it has not answered for", Path(server.log.name).read_text().splitlines()[-1])

    def test_a_device_that_hangs_in_warming_up_ends_the_start(self):
        self.hung.touch()
        with self.serve() as server:
            self.assertEqual((server.greeting, server.process.wait()), ("", 1))
            self.assertRegex(Path(server.log.name).read_text().splitlines()[-1],
                             "^ditserve: cpu is lost: it has not got on for")
        done = subprocess.run([self.bin / "ditserve", "--check", "--device", "cuda:0"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, "^ditserve: cpu is lost: it has not got on for")

    def test_a_device_that_is_there_is_described_with_what_each_profile_takes(self):
        done = subprocess.run([self.bin / "ditserve", "--check", "--device", "cuda:0"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("NVIDIA H200, compute capability 9.0, 132 multiprocessors, 141.0 GiB", done.stdout)
        self.assertIn("544 TFLOP/s, published, not measured here", done.stdout)
        for profile in ("resident", "host-offload", "fp8-host", "dynamic", "disk", "disk-fp8-device", "fp8-compute"):
            self.assertRegex(done.stdout, rf"\n{profile} +\d.*iB .*\n")


if __name__ == "__main__":
    unittest.main()
