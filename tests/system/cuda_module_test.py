"""A server beside the CUDA device module: one on the CPU does not know of it, one on a GPU that is not there says so."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

from programs import BIN, ProgramTest, Server

# The module where this build has it, else one of its name.
MODULE = Path(os.environ.get("CUDA_MODULE") or os.environ["LOSABLE_DEVICE"])
MIB = 2**20


def has_driver() -> bool:
    try:
        return bool(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return False


class CudaModuleTest(ProgramTest):
    def look_at_a_cpu_server(self, name: str, beside: list[Path]) -> tuple[dict[str, int], int]:
        """The bytes of each file that it maps, and those that are no file's."""
        folder = self.folder / name
        folder.mkdir()
        for file in (BIN / "ditserve", BIN / "ditctl", *beside):
            shutil.copy(file, folder)
        with Server(folder, "--model", f"tiny={self.checkpoint}", binaries=folder) as server:
            process = Path("/proc") / str(server.process.pid)
            mapped = {}
            for line in (process / "maps").read_text().splitlines():
                addresses, *_, path = line.split(maxsplit=5)
                if path.startswith("/"):
                    begin, end = (int(address, 16) for address in addresses.split("-"))
                    mapped[Path(path).name] = mapped.get(Path(path).name, 0) + end - begin
            status = dict(line.split(":") for line in (process / "status").read_text().splitlines())
            return mapped, int(status["RssAnon"].split()[0]) * 1024

    def test_a_cpu_server_is_no_larger_where_the_module_is_installed(self):
        without, own = self.look_at_a_cpu_server("without", [])
        beside, own_beside = self.look_at_a_cpu_server("with", [MODULE])
        self.assertEqual(beside, without)
        self.assertLess(abs(own_beside - own), 2 * MIB)  # From run to run it is a tenth of one.
        for library in ("libditserve_cuda", "libtorch_cuda", "libc10_cuda", "libcublas", "libcudnn"):
            self.assertEqual([name for name in beside if name.startswith(library)], [])


class NoGpuTest(ProgramTest):
    def setUp(self):
        super().setUp()
        if not os.environ.get("CUDA_MODULE"):
            self.skipTest("this build has no CUDA module: NOT SEEN what a server says where there is no GPU")
        if has_driver():
            self.skipTest("this machine has a driver: NOT SEEN what a server says where there is none")

    def test_a_gpu_that_is_not_there_is_a_failure_that_says_so(self):
        done = subprocess.run(
            [BIN / "ditserve", "--device", "cuda:0", "--listen", f"unix:{self.folder}/socket", "--admin-listen", "none",
             "--metrics-listen", "none", "--model", f"tiny={self.checkpoint}"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        (line,) = done.stderr.splitlines()
        missing = re.search(r"\blib(c10_cuda|torch_cuda|cu|nv|nccl)[\w.+-]*: cannot open shared object file", line)
        if missing:
            self.skipTest(f"LibTorch came without the CUDA libraries that it runs on: {missing[0]}")
        self.assertEqual(line, "ditserve: device cuda:0: there is no NVIDIA driver, or a container that was started "
                               "without it")


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    for _, reason in result.skipped:
        print(reason, file=sys.stderr)
    sys.exit(1 if not result.wasSuccessful() else 77 if result.skipped else 0)
