"""A ditserve whose device is lost, by a device module that can lose it."""

import os
import shutil
import unittest
from pathlib import Path

from programs import BIN, ProgramTest, Server

LONG = 2048  # Pixels a side of a pass that takes long enough to be met under way.


class DeviceLossTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for file in (BIN / "ditserve", BIN / "ditctl", Path(os.environ["LOSABLE_DEVICE"])):
            shutil.copy(file, self.bin)
        self.lost = self.folder / "lost"
        os.environ["LOSES_DEVICE"] = str(self.lost)
        self.addCleanup(os.environ.pop, "LOSES_DEVICE")

    def serve(self) -> Server:
        config = self.write("cuda.yaml", "device: {name: 'cuda:0'}\nmemory: {device_budget: 1GiB, host_budget: 1GiB}\n")
        return Server(self.folder, "--model", f"tiny={self.checkpoint}", "--config", config, binaries=self.bin)

    def test_everything_ends_with_why(self):
        with self.serve() as server:
            self.assertEqual(server.ditctl("forward", "--height", "64", "--width", "64").returncode, 0)
            under_way = server.forwards_under_way(LONG, 2)
            self.lost.touch()
            self.assertEqual(server.process.wait(), 1)
            for request in under_way:
                _, errors = request.communicate()
                if request.returncode != 0:
                    self.assertIn("UNAVAILABLE", errors)
            self.assertIn("cuda:0 is lost: it fell from the bus", Path(server.log.name).read_text().splitlines()[-1])


if __name__ == "__main__":
    unittest.main()
