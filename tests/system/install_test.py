"""What `cmake --install` makes, moved to another place."""

import os
import subprocess
import unittest
from pathlib import Path

from programs import ProgramTest, Server

BUILD = Path(os.environ["DITSERVE_BUILD"])


class InstallTest(ProgramTest):
    def test_an_installed_folder_runs_from_where_it_was_moved_to(self):
        made, moved = self.folder / "made", self.folder / "a moved one"
        subprocess.run(["cmake", "--install", BUILD, "--prefix", made], check=True, stdout=subprocess.DEVNULL)
        made.rename(moved)
        with Server(self.folder, "--config", moved / "share/ditserve/config/ditserve.yaml",
                    "--model", f"tiny={self.checkpoint}", binaries=moved / "bin") as server:
            output, errors = server.forward(64).communicate()
            self.assertIn("output", output, errors)
            mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        # It is the copy that runs, and not what it was built with.
        self.assertIn(f"{moved}/lib/ditserve/libtorch_cpu.so", mapped)
        self.assertEqual([line for line in mapped.splitlines() if "libc10.so" in line and str(moved) not in line], [])


if __name__ == "__main__":
    unittest.main()
