"""scripts/soak with programs in place of ditserve and ditctl: what it must let pass, and what it must not."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SOAK = Path(__file__).resolve().parents[2] / "scripts/soak"
# Each request is a signal to the server, and each watcher another. It answers as it is asked to, and with DATA_LOSS once a
# shard was cut short; watchers are told UPDATES times, and wait for more if they asked for no number.
DITCTL = """#!/usr/bin/env bash
fail() { echo "$1" >&2; exit 1; }
case $1 in
  make-checkpoint) mkdir "${@: -1}"; echo weights >"${@: -1}/1.safetensors" ;;
  residency) echo '{"memories": [{"activations_bytes": "0", "weights_bytes": "0"}]}' ;;
  top)
    kill -USR2 "$(cat "$PID")"
    for _ in $(seq "$UPDATES"); do echo '"memories"'; done
    [[ "$*" = *--count* ]] || exec tail -f /dev/null ;;
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
# Is 64 MiB large at once and grows by LEAK bytes a request and WATCHER_LEAK a watcher; ends with CODE.
DITSERVE = """#!{python}
import os, signal, sys
held = [b"x" * (64 << 20)]
signal.signal(signal.SIGUSR1, lambda *_: held.append(b"x" * int(os.environ["LEAK"])))
signal.signal(signal.SIGUSR2, lambda *_: held.append(b"x" * int(os.environ["WATCHER_LEAK"])))
signal.signal(signal.SIGTERM, lambda *_: os._exit(int(os.environ["CODE"])))
with open(os.environ["PID"], "w") as file:
    file.write(str(os.getpid()))
while True:
    signal.pause()
"""


class SoakTest(unittest.TestCase):
    def soak(self, leak: int = 0, code: int = 0, watcher_leak: int = 0, updates: int = 3) -> subprocess.CompletedProcess:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("ditctl", DITCTL), ("ditserve", DITSERVE.format(python=sys.executable))):
                (Path(folder) / name).write_text(text)
                (Path(folder) / name).chmod(0o755)
            pid = Path(folder) / "pid"
            environment = os.environ | {"LEAK": str(leak), "CODE": str(code), "PID": str(pid),
                                        "WATCHER_LEAK": str(watcher_leak), "UPDATES": str(updates)}
            return subprocess.run([SOAK, folder, "/no checkpoint", "0", "1"], env=environment, capture_output=True,
                                  text=True)

    def test_a_server_that_stays_as_it_is_passes(self):
        done = self.soak()
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_server_that_grows_with_every_request_fails(self):
        done = self.soak(leak=1 << 19)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("soak: the process grew by", done.stderr)

    def test_a_server_that_grows_with_every_watcher_fails(self):
        done = self.soak(watcher_leak=1 << 22)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("soak: the process grew by", done.stderr)

    def test_a_server_that_tells_watchers_less_than_they_asked_for_fails(self):
        done = self.soak(updates=1)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("soak: a watcher was told 1 updates", done.stderr)

    def test_a_server_that_ends_uncleanly_fails(self):
        done = self.soak(code=3)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("soak: the server ended with status 3, expected 0", done.stderr)


if __name__ == "__main__":
    unittest.main()
