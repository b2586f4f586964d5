"""scripts/fetch-nvcc, with compilers that only tell their release."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class FetchNvccTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def compiler(self, release: str, at: str) -> Path:
        nvcc = self.folder / at / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
        nvcc.chmod(0o755)
        return nvcc

    def fetch(self, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run([ROOT / "scripts/fetch-nvcc"], capture_output=True, text=True,
                              env={"PATH": os.environ["PATH"], **environment})

    def test_one_that_is_named_is_taken_and_its_release_told(self):
        same = self.fetch(CUDACXX=str(self.compiler("13.0", "same")))
        self.assertEqual(same.stdout.strip(), str(self.folder / "same/nvcc"))
        self.assertIn("of CUDA 13.0\n", same.stderr)
        newer = self.fetch(CUDACXX=str(self.compiler("13.2", "newer")))
        self.assertEqual(newer.stdout.strip(), str(self.folder / "newer/nvcc"))
        self.assertIn("of CUDA 13.2: *** LibTorch's runtime is of CUDA 13.0 ***", newer.stderr)
        older = self.fetch(CUDACXX=str(self.compiler("12.8", "older")))
        self.assertEqual((older.returncode, older.stdout), (1, ""))

    # (Or one that the machine has where toolkits are.)
    def test_a_newer_one_that_is_found_gives_way_to_one_of_libtorch_s_release(self):
        newer = self.compiler("13.2", "bin")
        self.compiler("13.0", "cache/nvcc-13.0.88/nvidia/cu13/bin")
        found = self.fetch(PATH=f"{newer.parent}:{os.environ['PATH']}", DITSERVE_CACHE=str(self.folder / "cache"))
        self.assertEqual(found.returncode, 0, found.stderr)
        self.assertNotEqual(found.stdout.strip(), str(newer))
        self.assertIn("of CUDA 13.0\n", found.stderr)

    def test_a_newer_one_serves_where_none_can_be_fetched(self):
        tools = self.folder / "bin"
        newer = self.compiler("13.2", "bin")
        (tools / "python3").write_text("#!/bin/sh\nexit 1\n")  # Whose pip finds no network.
        (tools / "python3").chmod(0o755)
        found = self.fetch(PATH=f"{tools}:{os.environ['PATH']}", DITSERVE_CACHE=str(self.folder / "cache"))
        self.assertEqual(found.returncode, 0, found.stderr)
        self.assertTrue(found.stdout.strip() == str(newer) or "of CUDA 13.0\n" in found.stderr)


if __name__ == "__main__":
    unittest.main()
