"""Programs that tell when they are ready as systemd asks them to."""

import re
import socket
from pathlib import Path

# Only what hangs takes that long.
PATIENCE_SECONDS = 120


class Readiness:
    """A socket to start a program with, in its environment's NOTIFY_SOCKET."""

    def __init__(self, folder: Path):
        self.path = folder / "ready"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(PATIENCE_SECONDS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.path.unlink()

    def wait(self) -> dict[str, str]:
        """What the program told until it was ready."""
        told: dict[str, str] = {}
        while told.get("READY") != "1":
            told |= dict(re.findall("^([A-Z_]+)=(.*)$", self.socket.recv(4096).decode(), re.M))
        return told
