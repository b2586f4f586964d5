"""The container image as it is to be run: a read-only root, no privileges, a limit of memory.

Builds the image unless DITSERVE_IMAGE names one. That for GPUs is built where CUDA_IMAGE=1 asks for it, which fetches some 3 GB
and compiles for a quarter of an hour, and tested where it is, or DITSERVE_CUDA_IMAGE names one. What is missing fails it by name."""

import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.request
from pathlib import Path

from docker_host import Docker

ROOT = Path(__file__).resolve().parents[2]
USER = "12345:12345"
MEMORY_BYTES = 2 << 30
MOST_IMAGE_BYTES = 700_000_000
CONFIG = """
listen: {address: "unix:/run/ditserve/socket"}
admin: {address: none}
metrics: {address: "127.0.0.1:0"}
models: [{name: one, path: /models/one}]
"""


class Container:
    """A server that is ready, and what its kernel and itself say of its memory."""

    def __init__(self, docker: Docker, image: str, folder: Path, *flags: str):
        self.docker = docker
        self.mounts = [f"--volume={folder}/etc:/etc/ditserve:ro", f"--volume={folder}/models:/models:ro",
                       f"--volume={folder}/run:/run/ditserve"]
        self.confined = [f"--user={USER}", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
                         "--network=host"]
        self.image = image
        self.id = docker("run", "--detach", *self.confined, *self.mounts, f"--memory={MEMORY_BYTES}", *flags,
                         image).stdout.strip()

    def remove(self) -> None:
        self.docker("rm", "--force", self.id)

    def inspect(self, what: str) -> str:
        return self.docker("inspect", "--format", "{{" + what + "}}", self.id).stdout.strip()

    def client(self, *arguments: str) -> list[str]:
        """ditctl in a container of its own, which stays when the server goes."""
        return ["run", "--rm", *self.confined, *self.mounts, "--no-healthcheck", "--entrypoint=ditctl", self.image,
                arguments[0], "--address=unix:/run/ditserve/socket", *arguments[1:]]

    def forward(self, side: int, profile: str = "disk") -> str:
        return self.docker(*self.client("forward", f"--height={side}", f"--width={side}", f"--profile={profile}",
                                        "--wait-seconds=60")).stdout

    def residency(self) -> dict:
        return json.loads(self.docker(*self.client("residency", "--json")).stdout)

    def ledger_bytes(self) -> int:
        logs = self.docker("logs", self.id)
        port = re.search(r"status page on port (\d+)", logs.stdout + logs.stderr)[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("ditserve_memory_bytes{"))

    def group_bytes(self) -> tuple[int, int]:
        """Of the control group: what is used but for files' pages, and the processes' own memory."""
        groups = Path(f"/proc/{self.inspect('.State.Pid')}/cgroup").read_text()
        version1 = re.search(r"^\d+:memory:(.*)$", groups, re.M)
        if version1:
            folder = Path("/sys/fs/cgroup/memory" + version1[1])
            used, files, own = "memory.usage_in_bytes", "total_cache", "total_rss"
        else:
            folder = Path("/sys/fs/cgroup" + re.search(r"^0::(.*)$", groups, re.M)[1])
            used, files, own = "memory.current", "file", "anon"
        fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int((folder / used).read_text()) - int(fields[files]), int(fields[own])

    def resident_bytes(self) -> int:
        """The server's own memory, as its process tells."""
        pids = dict(line.split()[::-1] for line in
                    self.docker("top", self.id, "-o", "pid,comm").stdout.splitlines()[1:])
        status = Path(f"/proc/{pids['ditserve']}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


class ContainerTest(unittest.TestCase):
    docker: Docker
    image: str
    folder: Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.docker = Docker()
        cls.addClassCleanup(cls.docker.close)
        cls.image = cls.docker.image()
        cls.folder = Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        for name in ("etc", "models", "run"):
            (cls.folder / name).mkdir()
        shutil.chown(cls.folder / "run", *map(int, USER.split(":")))
        (cls.folder / "etc/ditserve.yaml").write_text(CONFIG)
        cls.folder.chmod(0o755)
        cls.docker("run", "--rm", "--network=none", "--user=0:0", f"--volume={cls.folder}/models:/models",
                   "--entrypoint=ditctl", cls.image, "make-checkpoint", "--blocks=2", "--out=/models/one")

    def start(self, *flags: str) -> Container:
        container = Container(self.docker, self.image, self.folder, *flags)
        self.addCleanup(container.remove)
        return container

    def test_the_image_is_small_and_says_what_it_is(self):
        [image] = json.loads(self.docker("image", "inspect", self.image).stdout)
        print(f"container_test: image of {image['Size']} bytes, for at most {MOST_IMAGE_BYTES}")
        self.assertLess(image["Size"], MOST_IMAGE_BYTES)
        config = image["Config"]
        self.assertRegex(config["User"], r"^[1-9]\d*:[1-9]\d*$")
        # Arguments take the place of these, so who is shown others is shown these too.
        shown = re.search(r"docker run .*?\n```", (ROOT / "docs/install.md").read_text(), re.DOTALL)[0]
        self.assertIn(f"ditserve:0.1.0 {' '.join(config['Cmd'])} ", shown)
        version = self.docker("run", "--rm", "--network=none", self.image, "--version").stdout.split()[1]
        self.assertEqual(config["Labels"]["org.opencontainers.image.version"], version)
        bill = json.loads(self.docker("run", "--rm", "--network=none", "--entrypoint=cat", self.image,
                                      "/usr/share/ditserve/sbom.cdx.json").stdout)
        listed = {component["name"]: component["version"] for component in bill["components"]}
        self.assertEqual(listed["ditserve"].split("-")[0], version)
        self.assertLessEqual({"torch", "libgrpc++1.51", "libc6", "tini", "nvidia-cuda-runtime"}, set(listed))
        installed = self.docker("run", "--rm", "--network=none", "--entrypoint=dpkg-query", self.image, "--show",
                                "--showformat", "${Package} ${Version}\n").stdout.splitlines()
        self.assertEqual({line for line in installed if listed.get(line.split()[0]) != line.split()[1]}, set())

    def test_it_becomes_healthy_and_answers(self):
        container = self.start("--health-interval=1s", "--health-start-period=1s", "--health-retries=60")
        self.await_health(container, "healthy")
        self.assertIn("output", container.forward(64))

    def await_health(self, container: Container, state: str) -> None:
        while (now := container.inspect(".State.Health.Status")) != state:
            self.assertEqual((now, container.inspect(".State.Running")), ("starting", "true"),
                             self.docker("logs", container.id).stderr)

    def test_budgets_are_shares_of_its_limit_and_its_memory_is_what_it_tells(self):
        container = self.start("--no-healthcheck")
        container.forward(64)  # LibTorch has taken then what it takes once.
        budgets = [int(memory["wanted_budget_bytes"]) for memory in container.residency()["memories"]]
        self.assertEqual(sorted(budgets), sorted([MEMORY_BYTES * 60 // 100, MEMORY_BYTES * 25 // 100]))

        ledger, (used, own) = container.ledger_bytes(), container.group_bytes()
        container.forward(64, "resident")
        ledger_grew = container.ledger_bytes() - ledger
        used_grew = container.group_bytes()[0] - used
        own, resident = container.group_bytes()[1], container.resident_bytes()
        print(f"container_test: the ledger grew by {ledger_grew} bytes, the control group by {used_grew}, "
              f"{used_grew / ledger_grew:.4f} of it; the group's own memory is {own} bytes, the process's {resident}")
        self.assertGreater(ledger_grew, 300 << 20)
        self.assertAlmostEqual(used_grew / ledger_grew, 1, delta=0.02)
        self.assertAlmostEqual(own / resident, 1, delta=0.02)

    def test_it_computes_on_as_many_threads_as_it_has_processors(self):
        for processors in (1, 1.5):
            told = self.docker("run", "--rm", "--network=none", f"--cpus={processors}", self.image, "--check",
                               "--device=cpu").stdout
            threads = min(math.ceil(processors), len(os.sched_getaffinity(0)))
            self.assertIn(f"cpu {threads} thread{'' if threads == 1 else 's'};", " ".join(told.split()))

    def test_why_a_server_did_not_start_is_in_the_termination_log(self):
        log = self.folder / "termination-log"  # As kubelet mounts it.
        log.touch()
        shutil.chown(log, *map(int, USER.split(":")))
        ended = self.docker("run", "--rm", "--network=none", f"--user={USER}", "--read-only", "--cap-drop=ALL",
                            f"--volume={log}:/dev/termination-log", self.image, "--model=one=/models/one",
                            "--default-profile=none", check=False)
        self.assertEqual(ended.returncode, 2, ended.stderr)
        self.assertIn("no profile is named 'none'", log.read_text())
        self.assertEqual(log.read_text().splitlines(), ended.stderr.splitlines()[-1:])

    @unittest.skipUnless(os.environ.get("CUDA_IMAGE") == "1" or "DITSERVE_CUDA_IMAGE" in os.environ,
                         "CUDA_IMAGE=1 builds the image for GPUs")
    def test_the_image_for_gpus_says_where_there_is_no_driver(self):
        ended = self.docker("run", "--rm", "--network=none", f"--user={USER}", "--read-only", "--cap-drop=ALL",
                            f"--volume={self.folder}/models:/models:ro", self.docker.cuda_image(), "--device=cuda:0",
                            "--model=one=/models/one", check=False)
        self.assertEqual((ended.returncode, ended.stdout), (1, ""), ended.stderr)
        self.assertIn("device cuda:0: there is no NVIDIA driver", ended.stderr)

    def test_a_stop_answers_the_request_that_was_accepted(self):
        container = self.start("--no-healthcheck")
        container.forward(64)
        with subprocess.Popen([self.docker.client, *container.client("forward", "--height=1024", "--width=1024")],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env=self.docker.environment) as request:
            while not container.residency()["riders"]:
                self.assertIsNone(request.poll(), "it was answered before it was seen under way")
            self.docker("kill", "--signal=TERM", container.id)
            output, errors = request.communicate()
        self.assertIn("output", output, errors)
        self.assertEqual(self.docker("wait", container.id).stdout, "0\n")


if __name__ == "__main__":
    unittest.main()
