"""The clients of clients.py, in a process of their own, and what they were answered."""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("DITSERVE_CACHE", ROOT / "build/cache"))
PATIENCE_SECONDS = 120


@dataclass
class Call:
    """One that has ended. Times are the machine's monotonic clock, in seconds."""

    kind: str
    begun: float
    ended: float
    code: str
    details: str
    queue: float = 0
    pixels: int = 0
    profile: str = ""
    checksum: int = 0

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


def counted(calls: list[Call]) -> str:
    """How many ended with which code."""
    return ", ".join(f"{count} {code}" for code, count in Counter(call.code for call in calls).most_common())


class Crowd:
    """Asks once this is made; `mix` is what clients.py's Mix has. `calls` and `updates` grow meanwhile."""

    def __init__(self, address: str, **mix: object):
        environment = CACHE / "load"
        subprocess.run([ROOT / "scripts/python-environment", environment, HERE / "requirements.txt"], check=True)
        self.calls: list[Call] = []
        self.updates: list[dict] = []  # What watchers were sent.
        self._scratch = tempfile.TemporaryDirectory()
        descriptors = Path(self._scratch.name) / "descriptors"
        subprocess.run(["protoc", f"--descriptor_set_out={descriptors}", "--include_imports", "-I", ROOT / "proto",
                        "ditserve/v1/transformer_service.proto", "ditserve/v1/residency_service.proto"], check=True)
        self.process = subprocess.Popen(
            [environment / "bin/python", HERE / "clients.py", address, descriptors, json.dumps(mix)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._grown = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self._reader.join()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self._scratch.cleanup()

    def _read(self) -> None:
        for line in self.process.stdout:
            told = json.loads(line)
            with self._grown:
                if told["kind"] == "update":
                    self.updates.append(told)
                else:
                    self.calls.append(Call(**told))
                self._grown.notify_all()
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Looks whenever a call has ended or an update come; gives up only on what hangs."""
        with self._grown:
            if not self._grown.wait_for(lambda: self._ended or condition(), PATIENCE_SECONDS):
                raise TimeoutError(f"waited for {PATIENCE_SECONDS} s in vain: {what}")
            if self._ended:
                raise RuntimeError(f"the clients have failed, with {self.process.wait()}")

    def await_answers(self, count: int) -> None:
        """So many more, of calls that begin from now on."""
        now = time.monotonic()
        self.until(lambda: sum(call.code == "OK" and call.begun > now for call in self.calls) >= count, f"{count} answers")

    def stop(self) -> list[Call]:
        """Lets what is under way end; returns all calls."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.process.stdin.fileno(), b"\n")
        self._reader.join()
        if self.process.wait() != 0:
            raise RuntimeError(f"the clients have failed, with {self.process.returncode}")
        return self.calls
