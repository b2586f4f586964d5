"""Unmodified clients of the Open Inference Protocol: Triton's, blocking and asyncio, and KServe's."""

import os
import subprocess
import unittest
from pathlib import Path

from programs import ProgramTest, Server

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = Path(__file__).resolve().parent / "inference"
CACHE = Path(os.environ.get("DITSERVE_CACHE", ROOT / "build/cache"))

# Writes the inputs; compares what the clients were answered with what ditctl was.
PREPARE = """
import numpy, sys
random = numpy.random.default_rng(5)
for name, shape in (("latents", (1, 16, 4, 4)), ("prompt_emb", (1, 3, 3584))):
    # Values that bfloat16 holds exactly.
    values = random.standard_normal(shape, dtype=numpy.float32)
    numpy.save(f"{sys.argv[1]}/{name}.npy", (values.view(numpy.uint32) & 0xFFFF0000).view(numpy.float32))
numpy.save(f"{sys.argv[1]}/timestep.npy", numpy.array([0.5], dtype=numpy.float32))
"""
COMPARE = """
import numpy, pathlib, sys
folder = pathlib.Path(sys.argv[1])
expected = numpy.load(folder / "ditctl.npy")
for name in sys.argv[2:]:
    answer = numpy.load(folder / f"{name}.npy")
    error = abs(answer - expected).max() / abs(expected).max()
    exact = not name.endswith("16")  # 16 bits are not enough for the same.
    assert answer.shape == expected.shape and (error == 0 if exact else error < 0.02), (name, error)
"""


class InferenceTest(ProgramTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        environment = CACHE / "inference"
        subprocess.run([ROOT / "scripts/python-environment", environment, CLIENTS / "requirements.txt"], check=True)
        cls.python = environment / "bin/python"

    def run_python(self, *arguments: str | Path) -> None:
        done = subprocess.run([self.python, *arguments], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def setUp(self):
        super().setUp()
        self.run_python("-c", PREPARE, self.folder)
        server = Server(self.folder, "--model", f"tiny={self.checkpoint}")
        self.server = self.enterContext(server)
        done = self.server.ditctl("forward", "--height", "32", "--width", "32", "--profile", "disk",
                                  "--latents", f"{self.folder}/latents.npy", "--timestep-file",
                                  f"{self.folder}/timestep.npy", "--prompt-emb", f"{self.folder}/prompt_emb.npy",
                                  "--output", f"{self.folder}/ditctl.npy")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_tritons_client_gets_what_ours_gets(self):
        self.run_python(CLIENTS / "triton.py", self.server.address, self.folder)
        self.run_python("-c", COMPARE, self.folder, "triton-FP32", "triton-FP16", "triton-BF16",
                        *[f"triton-async-{i}" for i in range(4)])

    def test_kserves_client_gets_what_ours_gets(self):
        self.run_python(CLIENTS / "kserve_sdk.py", self.server.address, self.folder)
        self.run_python("-c", COMPARE, self.folder, *[f"kserve-{i}" for i in range(3)])


if __name__ == "__main__":
    unittest.main()
