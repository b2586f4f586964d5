"""scripts/soak with programs in place of ditserve and ditctl: what it must let pass, and what it must not."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SOAK = Path(__file__).resolve().parents[2] / "scripts/soak"
# Each request is a signal to the server. It answers as it is asked to, and with DATA_LOSS once a shard was cut short.
DITCTL = """#!/usr/bin/env bash
fail() { echo "$1" >&2; exit 1; }
case $1 in
  make-checkpoint) mkdir "${@: -1}"; echo weights >"${@: -1}/1.safetensors" ;;
  residency) echo '{"memories": [{"activations_bytes": "0", "weights_bytes": "0"}]}' ;;
  forward)
    kill -USR1 "$(cat "$PID")"
    while [ $# -gt 1 ]; do
      case $1 in
        --output) output=$2 ;;
        --address) folder=$(dirname "${2#unix:}") ;;
        --model) model=$2 ;;
        --height) height=$2 ;;
      esac
      shift
    done
    [ "$height" != 100 ] || fail "INVALID_ARGUMENT: height: 100"
    [ "$model" = soak ] || [ "$(<"$folder/fragile/1.safetensors")" = weights ] || fail DATA_LOSS
    [ -z "$output" ] || echo answer >"$output" ;;
esac
"""
# Is 64 MiB large at once and grows by LEAK bytes a request; ends with CODE.
DITSERVE = """#!{python}
import os, signal, sys
held = [b"x" * (64 << 20)]
signal.signal(signal.SIGUSR1, lambda *_: held.append(b"x" * int(os.environ["LEAK"])))
signal.signal(signal.SIGTERM, lambda *_: os._exit(int(os.environ["CODE"])))
with open(os.environ["PID"], "w") as file:
    file.write(str(os.getpid()))
while True:
    signal.pause()
"""


class SoakTest(unittest.TestCase):
    def soak(self, leak: int = 0, code: int = 0) -> subprocess.CompletedProcess:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("ditctl", DITCTL), ("ditserve", DITSERVE.format(python=sys.executable))):
                (Path(folder) / name).write_text(text)
                (Path(folder) / name).chmod(0o755)
            pid = Path(folder) / "pid"
            environment = os.environ | {"LEAK": str(leak), "CODE": str(code), "PID": str(pid)}
            return subprocess.run([SOAK, folder, "/no checkpoint", "0", "1"], env=environment, capture_output=True,
                                  text=True)

    def test_a_server_that_stays_as_it_is_passes(self):
        done = self.soak()
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_server_that_grows_with_every_request_fails(self):
        done = self.soak(leak=1 << 19)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("soak: the process grew by", done.stderr)

    def test_a_server_that_ends_uncleanly_fails(self):
        done = self.soak(code=3)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("soak: the server ended with status 3, expected 0", done.stderr)


if __name__ == "__main__":
    unittest.main()
