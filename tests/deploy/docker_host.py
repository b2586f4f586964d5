"""A Docker daemon, the machine's or one started here, and the image under test in it."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from readiness import Readiness

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*command: str | Path, check: bool = True, **more) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def builds(client: str) -> bool:
    """Whether it has BuildKit: until Docker 23 each has, afterwards it is a part of its own."""
    version = run(client, "version", "--format", "{{.Client.Version}}", check=False).stdout
    return version.split(".")[0].isdigit() and int(version.split(".")[0]) < 23 or \
        run(client, "buildx", "version", check=False).returncode == 0


def find_client() -> str:
    named = os.environ.get("DOCKER")
    there = [f"{folder}/docker" for folder in os.get_exec_path() if os.access(f"{folder}/docker", os.X_OK)]
    for client in [named] if named else there:
        if builds(client):
            return client
    raise AssertionError(f"no Docker client with BuildKit among {named or there}: install Docker (docker.io), or name one by DOCKER")


class Docker:
    """Uses the daemon that answers, else a dockerd of its own, which needs root. DOCKER: the client, with BuildKit."""

    def __init__(self):
        self.client = find_client()
        self.folder = Path(tempfile.mkdtemp(prefix="ditserve-docker-"))
        self.environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        self.daemon: subprocess.Popen | None = None
        self.made_base = ""
        if self("info", check=False).returncode != 0:
            self.start()

    def __call__(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(self.client, *arguments, check=check, env=self.environment)

    def start(self) -> None:
        if shutil.which("dockerd") is None or os.geteuid() != 0:
            raise AssertionError("no Docker daemon answers (see DOCKER_HOST), and there is no dockerd and root to start one")
        address = f"unix://{self.folder}/socket"
        self.environment["DOCKER_HOST"] = address
        with Readiness(self.folder) as ready, open(self.folder / "log", "w") as log:
            self.daemon = subprocess.Popen(
                ["dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false", f"--host={address}",
                 f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid"],
                env={**os.environ, "NOTIFY_SOCKET": str(ready.path)}, stdout=log, stderr=log)
            ready.wait()

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.terminate()
            self.daemon.wait()
            for line in Path("/proc/self/mounts").read_text().splitlines():
                if line.split()[1].startswith(f"{self.folder}/"):
                    run("umount", line.split()[1])  # It leaves its networks mounted.
        shutil.rmtree(self.folder)

    def image(self) -> str:
        """DITSERVE_IMAGE, or one that is built; BASE names what it stands on."""
        if "DITSERVE_IMAGE" in os.environ:
            return os.environ["DITSERVE_IMAGE"]
        flags = ["--network=host", "--tag=ditserve:under-test", f"--build-arg=BASE={self.base()}", *self.secrets()]
        run("make", "-C", ROOT, "image", f"DOCKER={self.client}", f"DOCKER_FLAGS={' '.join(flags)}", env=self.environment)
        return "ditserve:under-test"

    def cuda_image(self) -> str:
        """The same with the CUDA device module, or DITSERVE_CUDA_IMAGE."""
        if "DITSERVE_CUDA_IMAGE" not in os.environ:
            self("build", "--target=cuda", "--network=host", "--tag=ditserve:cuda-under-test",
                 f"--build-arg=BASE={self.base()}", *self.secrets(), ROOT)
        return os.environ.get("DITSERVE_CUDA_IMAGE", "ditserve:cuda-under-test")

    def base(self) -> str:
        """Debian from where images come from, else from its packages."""
        name = os.environ.get("BASE", "debian:bookworm-slim")
        if self("image", "inspect", name, check=False).returncode == 0 or self("pull", name, check=False).returncode == 0:
            return name
        if self.made_base:
            return self.made_base
        if shutil.which("debootstrap") is None:
            raise AssertionError(f"{name} can't be pulled, and there is no debootstrap to make one: scripts/setup deploy")
        root = self.folder / "base"
        run("debootstrap", "--variant=minbase", "bookworm", root)
        with subprocess.Popen(["tar", "--create", "--directory", root, "--exclude=./var/cache/apt/*",
                               "--exclude=./var/lib/apt/lists/*", "."], stdout=subprocess.PIPE) as packed:
            subprocess.run([self.client, "import", "-", "ditserve-base"], stdin=packed.stdout, check=True,
                           env=self.environment, stdout=subprocess.DEVNULL)
        self.made_base = "ditserve-base"
        return self.made_base

    def secrets(self) -> list[str]:
        """The certificates that pip trusts on this machine hold in the build too."""
        certificates = os.environ.get("PIP_CERT")
        if certificates is None:
            return []
        (self.folder / "pip.conf").write_text("[global]\ncert = /run/secrets/certificates\n")
        return [f"--secret=id=certificates,src={certificates}", f"--secret=id=pip.conf,src={self.folder}/pip.conf"]
