"""The built programs, for tests of them: DITSERVE_BIN is the folder of ditserve and ditctl, TINY_CHECKPOINT the program
that writes a checkpoint."""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

BIN = Path(os.environ["DITSERVE_BIN"]).resolve()  # Some are run in folders of their own.


def tiny_checkpoint(folder: Path) -> Path:
    subprocess.run([os.environ["TINY_CHECKPOINT"], folder], check=True)
    return folder


class Server:
    """A ditserve on a socket of its own, which serves once this is made."""

    def __init__(self, folder: Path, *flags: str | Path, binaries: Path = BIN, before=None, environment=None):
        self.binaries = binaries
        self.address = f"unix:{folder}/socket"
        self.admin_address = f"unix:{folder}/admin"
        self.log = open(folder / "log", "w+")
        self.process = subprocess.Popen(
            [binaries / "ditserve", "--listen", self.address, "--admin-listen", self.admin_address,
             "--metrics-listen", "none", *flags],
            stdout=subprocess.PIPE, stderr=self.log, text=True, preexec_fn=before, env=environment)
        self.greeting = self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()  # One that has ended as told is not there any more.
        self.process.communicate()
        self.log.close()

    def command(self, name: str, *arguments: str) -> list:
        address = self.admin_address if name == "budget" else self.address
        return [self.binaries / "ditctl", name, "--address", address, *arguments]

    def ditctl(self, name: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(name, *arguments), capture_output=True, text=True)

    def forward(self, side: int, *arguments: str) -> subprocess.Popen:
        size = str(side)
        return subprocess.Popen(self.command("forward", "--height", size, "--width", size, *arguments),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def residency(self, *arguments: str) -> dict:
        done = self.ditctl("residency", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def budgets(self, *arguments: str) -> list[int]:
        """Those that were asked for: the device's, the host's."""
        return [int(memory["wanted_budget_bytes"]) for memory in self.residency(*arguments)["memories"]]

    def forwards_under_way(self, side: int, least: int = 1) -> list[subprocess.Popen]:
        """Requests that the server has accepted, all of them, of which so many have not ended yet."""
        count = least
        while True:
            requests = [self.forward(side) for _ in range(count)]
            ended = 0
            while ended < count:
                ended = sum(request.poll() is not None for request in requests)
                under_way = self.count_requests()
                if ended + under_way == count and under_way >= least:
                    return requests
            for request in requests:
                _, errors = request.communicate()
                assert request.returncode == 0, errors
            count *= 2  # Too few at a time: they were answered faster than they came.

    def count_requests(self) -> int:
        residency = self.residency()
        return len(residency["riders"]) + residency["requests_waiting"]

    def await_log(self, text: str) -> str:
        """Until a line of the log has the text; returns it."""
        while True:
            for line in Path(self.log.name).read_text().splitlines():
                if text in line:
                    return line


class ProgramTest(unittest.TestCase):
    """Has a folder of its own, and one checkpoint for all tests of a class."""

    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.checkpoint = tiny_checkpoint(Path(scratch.name) / "tiny")

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def write(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name
