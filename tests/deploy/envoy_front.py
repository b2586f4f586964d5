"""Real ditserves with TLS and tokens, and the shipped Envoy in front of them."""

import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from programs import BIN

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "deploy/envoy"
TOKEN = "an-Envoy-for-clients-and-for-health"
PATIENCE_SECONDS = 120


def until(condition: Callable[[], object], what: str) -> None:
    """Asks again and again; gives up only on what hangs."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited for {PATIENCE_SECONDS} s in vain: {what}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def get(port: int, path: str) -> str:
    """What is answered, or "" where nothing is, or that it's not so."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_SECONDS) as response:
            return response.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return ""


class Authority:
    """A CA that lives as long as its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test")

    def certificate(self, name: str) -> Path:
        """A folder with tls.crt and tls.key for the name."""
        place = self.folder / name
        place.mkdir()
        (place / "names").write_text(f"subjectAltName=DNS:{name}\n")
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", place / "tls.key", "-out", place / "request",
                      "-subj", "/CN=test")
        self._openssl("x509", "-req", "-in", place / "request", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                      "-extfile", place / "names", "-out", place / "tls.crt")
        return place

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


class TlsServer:
    """A ditserve with TLS and tokens on 127.0.0.1, which serves once this is made."""

    def __init__(self, folder: Path, checkpoint: Path, certificate: Path):
        folder.mkdir()
        self.port, self.metrics_port = free_port(), free_port()
        (folder / "tokens.yaml").write_text(f"tokens: [{{name: test, token: {TOKEN}, scopes: [infer, read, admin]}}]\n")
        (folder / "ditserve.yaml").write_text(f"""
listen: {{address: "127.0.0.1:{self.port}"}}
tls: {{certificate: {certificate}/tls.crt, private_key: {certificate}/tls.key}}
access: {{tokens: {folder}/tokens.yaml}}
admin: {{address: none}}
metrics: {{address: "127.0.0.1:{self.metrics_port}"}}
memory: {{device_budget: 1GiB, host_budget: 512MiB}}
models: [{{name: tiny, path: {checkpoint}}}]
""")
        self._log = open(folder / "log", "w")
        self.process = subprocess.Popen([BIN / "ditserve", "--config", folder / "ditserve.yaml"],
                                        stdout=subprocess.PIPE, stderr=self._log, text=True)
        if not self.process.stdout.readline():
            raise RuntimeError((folder / "log").read_text())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self._log.close()

    def metric(self, name: str) -> float:
        """The sum of the series whose text begins so."""
        lines = get(self.metrics_port, "/metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def answered(self) -> int:
        return int(self.metric('ditserve_requests_total{code="OK"'))


class Envoy:
    """The shipped files, in which addresses and folders are replaced by those of here."""

    def __init__(self, program: Path, folder: Path, front: Path, authority: Authority, servers: list[TlsServer],
                 impostors: int = 0):
        folder.mkdir()
        self.port, self.health_port, self.admin_port = free_port(), free_port(), free_port()
        replica = "              - endpoint: {address: {socket_address: {address: %s, port_value: %d}}}\n"
        here = [("/etc/envoy-tls", str(front)), ("/etc/envoy/", f"{folder}/"), ("/etc/ditserve-ca", str(authority.folder)),
                ("address: 0.0.0.0, port_value: 8443", f"address: 127.0.0.1, port_value: {self.port}"),
                ("address: 0.0.0.0, port_value: 9902", f"address: 127.0.0.1, port_value: {self.health_port}"),
                ("port_value: 9901", f"port_value: {self.admin_port}"),
                (replica % ("ditserve-headless", 50051), "".join(replica % ("127.0.0.1", server.port) for server in servers))]
        shipped = {file.name: file.read_text() for file in SHIPPED.iterdir()}
        for old, new in here:
            if not any(old in text for text in shipped.values()):
                raise ValueError(f"deploy/envoy has no '{old}'")
            shipped = {name: text.replace(old, new) for name, text in shipped.items()}
        for name, text in shipped.items():
            (folder / name).write_text(text)
        self._log = open(folder / "log", "w")
        self.process = subprocess.Popen([program, "--config-path", folder / "envoy.yaml", "--concurrency", "2",
                                         "--disable-hot-restart"], stdout=self._log, stderr=subprocess.STDOUT)
        honest = len(servers) - impostors
        until(lambda: len(self.healthy()) == honest or self.process.poll() is not None, "Envoy finds the servers healthy")
        if self.process.poll() is not None:
            raise RuntimeError((folder / "log").read_text()[-4000:])
        if "Deprecated" in (folder / "log").read_text():
            raise RuntimeError("deploy/envoy uses what will be removed from Envoy")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._log.close()

    def healthy(self) -> list[str]:
        return re.findall(r"^ditserve::(127\S+)::health_flags::healthy$", get(self.admin_port, "/clusters"), re.M)

    def count(self, name: str) -> int:
        found = re.search(rf"^{re.escape(name)}: (\d+)$", get(self.admin_port, f"/stats?filter=^{name}$"), re.M)
        return int(found[1])
