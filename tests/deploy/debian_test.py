"""The Debian package: made, judged by lintian, installed in a machine of its own that systemd boots, and removed.

Needs root; what else is missing fails it by name. DITSERVE_DEB names a package that is there already."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

from readiness import Readiness

ROOT = Path(__file__).resolve().parent.parent.parent
TINY_CHECKPOINT = Path(os.environ.get("TINY_CHECKPOINT", ROOT / "build/release/tests/system/tiny_checkpoint"))
CONFIG = "etc/ditserve/ditserve.yaml"
NEEDED = ("lintian", "debootstrap", "systemd-analyze", "systemd-nspawn", "nsenter", "man")
MOST_EXPOSURE = 3.0


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def make_package() -> Path:
    if "DITSERVE_DEB" in os.environ:
        return Path(os.environ["DITSERVE_DEB"])
    for old in (ROOT / "build").glob("*.deb"):
        old.unlink()
    run("make", "-C", ROOT, "deb")
    [package] = (ROOT / "build").glob("*.deb")
    return package


class Machine:
    """A root folder that systemd runs in, with a network of its own."""

    def __init__(self, root: Path, leader: str):
        self.root = root
        self.leader = leader

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("nsenter", "--target", self.leader, "--all", "--", *command, check=check)

    def show(self, *names: str) -> list[str]:
        shown = dict(line.split("=", 1) for line in
                     self.run("systemctl", "show", "ditserve", "--property", ",".join(names)).stdout.splitlines())
        return [shown[name] for name in names]

    def await_line(self, text: str) -> None:
        """Until the service's journal has it."""
        follow = ["journalctl", "--unit", "ditserve", "--lines", "all", "--follow"]
        with subprocess.Popen(["nsenter", "--target", self.leader, "--all", "--", *follow],
                              stdout=subprocess.PIPE, text=True) as journal:
            try:
                if not any(text in line for line in journal.stdout):
                    raise AssertionError(f"the journal ended without '{text}'")
            finally:
                journal.kill()

    def forward(self) -> str:
        return self.run("ditctl", "forward", "--height", "64", "--width", "64", "--wait-seconds", "60").stdout


@contextlib.contextmanager
def booted(root: Path, folder: Path) -> Iterator[Machine]:
    with Readiness(folder) as ready, open(folder / "console", "w") as console:
        with subprocess.Popen(
                ["systemd-nspawn", "--quiet", "--directory", root, "--boot", "--register=no", "--keep-unit",
                 "--private-network", "--notify-ready=yes", "--console=pipe", "--machine=ditserve-test"],
                env={**os.environ, "NOTIFY_SOCKET": str(ready.path)},
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT) as nspawn:
            try:
                yield Machine(root, ready.wait()["X_NSPAWN_LEADER_PID"])
            finally:
                nspawn.terminate()  # It shuts the machine down.


class DebianTest(unittest.TestCase):
    package: Path
    folder: Path

    @classmethod
    def setUpClass(cls) -> None:
        missing = [tool for tool in NEEDED if shutil.which(tool) is None]
        if missing:
            raise AssertionError(f"missing: {' '.join(missing)}; `scripts/setup deploy` installs them")
        if os.geteuid() != 0:
            raise AssertionError("needs root, to install a package and to boot")
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.folder = Path(scratch.name)
        cls.package = make_package()
        cls.unpacked = cls.folder / "unpacked"
        run("dpkg-deb", "--extract", cls.package, cls.unpacked)
        cls.unit = (cls.unpacked / "usr/lib/systemd/system/ditserve.service").read_text()

    def test_lintian_finds_no_error_and_no_warning(self):
        done = run("lintian", "--allow-root", "--fail-on", "error,warning", self.package, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done)

    def test_it_depends_on_the_libraries_that_its_programs_need(self):
        depends = ", " + run("dpkg-deb", "--field", self.package, "Depends").stdout
        for library in ("libc6", "libgrpc++1.51", "libprotobuf32", "libyaml-cpp0.7", "libabsl20220623"):
            self.assertIn(f", {library} ", depends)

    def test_manual_pages_are_there_and_well_formed(self):
        for page in ("man8/ditserve.8.gz", "man1/ditctl.1.gz"):
            rendered = run("man", "--warnings", "--local-file", "--encoding=ascii", self.unpacked / "usr/share/man" / page)
            self.assertEqual(rendered.stderr, "")

    def test_the_service_is_confined(self):
        unit = self.unpacked / "usr/lib/systemd/system/ditserve.service"
        judged = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit).stdout
        exposure = float(re.search(r"Overall exposure level for ditserve.service: ([\d.]+)", judged)[1])
        print(f"debian_test: exposure {exposure}, for less than {MOST_EXPOSURE}")
        self.assertLess(exposure, MOST_EXPOSURE)

    def test_the_service_waits_for_requests_longer_than_the_server_does(self):
        drain = int(re.search(r"drain_timeout_seconds: (\d+)", (self.unpacked / CONFIG).read_text())[1])
        self.assertGreater(int(re.search(r"^TimeoutStopSec=(\d+)$", self.unit, re.M)[1]), drain + 45)

    def test_a_server_that_is_stopped_while_it_loads_has_not_failed(self):
        self.assertIn(f"\nSuccessExitStatus={128 + signal.SIGTERM}\n", self.unit)

    def test_a_machine_installs_runs_and_removes_it(self):
        root = self.folder / "root"
        run("debootstrap", "--variant=minbase", "bookworm", root)
        shutil.copy(self.package, root / "ditserve.deb")
        run("chroot", root, "apt-get", "update")
        run("chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes",
            "--no-install-recommends", "systemd-sysv", "dbus", "/ditserve.deb")
        (root / "ditserve.deb").unlink()
        run(TINY_CHECKPOINT, root / "srv/tiny")
        self.assertEqual(run("systemd-analyze", f"--root={root}", "verify", "--man=no", "ditserve.service").stderr, "")
        with booted(root, self.folder) as machine:
            self.check(machine)
            configured = (root / CONFIG).read_text().replace("models: []", "models: [{name: tiny, path: /srv/tiny}]")
            (root / CONFIG).write_text(configured)
            self.serve(machine, configured)
            machine.run("dpkg", "--remove", "ditserve")
            self.assertEqual(machine.show("ActiveState", "Result"), ["inactive", "success"])
        self.assertEqual((root / CONFIG).read_text(), configured)
        self.assertFalse((root / "usr/bin/ditserve").exists())
        run("chroot", root, "dpkg", "--purge", "ditserve")
        left = [path for path in root.rglob("*ditserve*") if not path.is_relative_to(root / "proc")]
        self.assertEqual(left, [])

    def check(self, machine: Machine) -> None:
        version = run("dpkg-deb", "--field", self.package, "Version").stdout.split("-")[0]
        self.assertEqual(machine.run("ditserve", "--version").stdout, f"ditserve {version}\n")
        # As it is shipped it is valid but for the model, which it cannot know. So the service does not begin by itself.
        check = ("ditserve", "--config", f"/{CONFIG}", "--check")
        self.assertIn("no model is configured", machine.run(*check, check=False).stderr)
        machine.run(*check, "--model", "tiny=/srv/tiny")
        self.assertEqual(machine.run("systemctl", "is-enabled", "ditserve", check=False).stdout, "disabled\n")
        self.assertEqual(machine.show("ActiveState"), ["inactive"])

    def serve(self, machine: Machine, configured: str) -> None:
        machine.run("systemctl", "enable", "--now", "ditserve")
        self.assertIn("output", machine.forward())
        [process] = machine.show("MainPID")
        status = machine.run("cat", f"/proc/{process}/status").stdout
        self.assertRegex(status, r"CapEff:\t0+\n")
        user = machine.run("id", "--user", "ditserve").stdout.strip()
        self.assertRegex(status, rf"Uid:\t{user}\t{user}\t")
        config = machine.root / CONFIG
        config.write_text(configured.replace("device_budget: auto", "device_budget: 1GiB"))
        machine.run("systemctl", "reload", "ditserve")
        # The reload sends a signal; that it was followed is told in the journal.
        machine.await_line("1073741824 of cpu")

        machine.run("systemctl", "stop", "ditserve")
        self.assertEqual(machine.show("ActiveState", "Result", "ExecMainStatus"), ["inactive", "success", "0"])

        # What is wrong is told, and not tried again.
        config.write_text("requests: {max_active: 0}\n")
        machine.run("systemctl", "start", "ditserve", check=False)
        machine.await_line("Failed with result 'exit-code'")
        self.assertEqual(machine.show("ActiveState", "ExecMainStatus", "NRestarts"), ["failed", "2", "0"])

        config.write_text(configured)
        machine.run("systemctl", "start", "ditserve")
        self.assertIn("output", machine.forward())


if __name__ == "__main__":
    unittest.main()
