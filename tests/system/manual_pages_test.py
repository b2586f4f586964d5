"""The manual pages: every option that --help tells of is in them, with what it is for."""

import gzip
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from programs import BIN

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/manual-pages"
FLAG = re.compile(r"^ +(?:-h,)?(--[a-z-]+(?: [A-Z][A-Z|:,=]*)?)", re.M)


def told(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class ManualPagesTest(unittest.TestCase):
    def setUp(self):
        out = self.enterContext(tempfile.TemporaryDirectory())
        subprocess.run([sys.executable, SCRIPT, BIN, out], check=True)
        self.pages = Path(out)

    def expect_flags(self, page: str, helps: str) -> None:
        text = gzip.decompress((self.pages / f"{page}.gz").read_bytes()).decode().replace("\\-", "-")
        entries = dict(re.findall(r"^\.TP\n\.B (?:-h,)?(.*)\n(.+)$", text, re.M))
        flags = FLAG.findall(helps)
        self.assertTrue(flags)
        for flag in flags:
            self.assertTrue(entries.get(flag), f"{flag} is not in the page of {page}")

    def test_the_servers_page_has_every_option(self):
        self.expect_flags("ditserve.8", told(BIN / "ditserve", "--help"))

    def test_the_clients_page_has_every_option_of_every_command(self):
        commands = re.findall(r"^  ([a-z-]+) ", told(BIN / "ditctl", "--help"), re.M)
        self.assertIn("denoise", commands)
        self.expect_flags("ditctl.1", "".join(told(BIN / "ditctl", command, "--help") for command in commands))


if __name__ == "__main__":
    unittest.main()
