"""scripts/run-demo with programs in place of ditserve and ditctl that do what it sees of them."""

import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Like ditctl: the folder is made beside the target, by one process at a time, and renamed when it is whole. It tells
# that it began and waits for leave to end. A forward pass is answered once the server is there.
DITCTL = """#!/usr/bin/env bash
if [ "$1" = forward ]; then
  until [ -e "${DITSERVE_ADDRESS#unix:}" ]; do :; done
  exit
fi
folder="${@: -1}"
mkdir "$folder.partial" || { echo failed >"$BEGAN"; exit 1; }
echo began >"$BEGAN"
read -r <"$LEAVE"
mv "$folder.partial" "$folder"
"""
DITSERVE = """#!/usr/bin/env bash
trap 'kill $!; exit 0' TERM
sleep infinity &
touch "${DITSERVE_ADDRESS#unix:}"
wait
"""


class RunDemoTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.cache = self.folder / "a cache"
        for name, text in (("ditctl", DITCTL), ("ditserve", DITSERVE)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        for name in ("began", "leave"):
            subprocess.run(["mkfifo", self.folder / name], check=True)

    def start(self) -> subprocess.Popen:
        environment = {"PATH": "/usr/bin:/bin", "BEGAN": str(self.folder / "began"), "LEAVE": str(self.folder / "leave")}
        return subprocess.Popen([ROOT / "scripts/run-demo", self.folder, self.cache], env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def await_begin(self) -> None:
        self.assertEqual((self.folder / "began").read_text(), "began\n")

    def give_leave(self) -> None:
        (self.folder / "leave").write_text("\n")

    def test_what_a_killed_run_left_is_begun_anew(self):
        self.cache.mkdir()
        for left in ("qwen-image-2-blocks.partial", "qwen-image-2-blocks.part.partial"):
            (self.cache / left).mkdir()
            (self.cache / left / "half a shard").touch()
        with self.start() as run:
            self.await_begin()
            self.give_leave()
            output = run.communicate()[0]
        self.assertEqual(run.returncode, 0, output)
        self.assertEqual(list((self.cache / "qwen-image-2-blocks").iterdir()), [])

    def test_of_two_at_once_one_waits_for_the_other(self):
        with self.start() as first:
            self.await_begin()
            with self.start() as second:
                self.assertIn("waiting for another run", second.stdout.readline())
                self.give_leave()
                outputs = [run.communicate()[0] for run in (first, second)]
        self.assertEqual([first.returncode, second.returncode], [0, 0], outputs)


if __name__ == "__main__":
    unittest.main()
