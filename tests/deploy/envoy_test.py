"""The shipped Envoy in front of two ditserves: TLS, balance, a replica that is killed or told to stop, floods."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from envoy_front import ROOT, SHIPPED, TOKEN, Authority, Envoy, TlsServer, get, until
from http2_attacks import ATTACKS, Attacker, HealthWatch, client_context, memory_bytes
from http2_connection import HealthClient, Target
from programs import tiny_checkpoint

TOOLS = Path(__file__).resolve().parent / "envoy"
CACHE = Path(os.environ.get("DITSERVE_CACHE", ROOT / "build/cache"))
MOST_GROWTH_BYTES = 64 << 20
FORWARD = "/ditserve.v1.TransformerService/Forward"


class Load:
    """Clients that ask all the time. What they were answered is read as it comes: `answers` has no more than was asked for."""

    def __init__(self, python: Path, address: str, authority: Authority, descriptors: Path, clients: int, pixels: int = 64):
        self._process = subprocess.Popen(
            [python, TOOLS / "grpc_load.py", address, authority.folder / "ca.crt", TOKEN, descriptors, str(clients), str(pixels)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answers: list[str] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def await_answers(self, count: int) -> None:
        """So many more."""
        for _ in range(count):
            answer = self._process.stdout.readline().strip()
            if not answer:
                raise RuntimeError("the clients have ended")
            self.answers.append(answer)

    def ask_no_more(self) -> None:
        self._process.stdin.close()

    def stop(self) -> list[str]:
        """Lets what is under way end; returns what failed, of all."""
        self.ask_no_more()
        self.answers += self._process.stdout.read().splitlines()
        return [answer for answer in self.answers if answer != "ok"]


class EnvoyTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        subprocess.run([ROOT / "scripts/python-environment", CACHE / "envoy", TOOLS / "requirements.txt"], check=True)
        cls.bin = CACHE / "envoy/bin"
        cls.checkpoint = tiny_checkpoint(cls.scratch / "tiny")
        cls.authority = Authority(cls.scratch / "ca")
        cls.of_server, cls.of_front = (cls.authority.certificate(name) for name in ("ditserve", "localhost"))
        cls.descriptors = cls.scratch / "descriptors"
        subprocess.run(["protoc", f"--descriptor_set_out={cls.descriptors}", "--include_imports", "-I", ROOT / "proto",
                        "ditserve/v1/transformer_service.proto"], check=True)

    def setUp(self):
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.servers = [self.enterContext(TlsServer(folder / f"server-{i}", self.checkpoint, self.of_server)) for i in range(2)]
        self.envoy = self.enterContext(Envoy(self.bin / "envoy", folder / "envoy", self.of_front, self.authority, self.servers))
        self.tls = client_context(self.authority.folder / "ca.crt")

    def load(self, clients: int, pixels: int = 64) -> Load:
        return self.enterContext(Load(self.bin / "python", f"localhost:{self.envoy.port}", self.authority, self.descriptors,
                                      clients, pixels))

    def target(self, **changes) -> Target:
        return Target(**{"host": "127.0.0.1", "port": self.envoy.port, "tls": self.tls, "server_name": "localhost", "token": TOKEN,
                         **changes})

    def test_tls_is_asked_for_and_shown(self):
        with HealthClient(self.target()) as client:
            client.check()
        for wrong in (self.target(tls=None), self.target(server_name="ditserve"),
                      self.target(tls=client_context(Authority(self.scratch / "other ca").folder / "ca.crt"))):
            with self.assertRaises(ConnectionError), HealthClient(wrong) as client:
                client.check()

    def test_a_server_with_a_certificate_for_something_else_is_not_asked(self):
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        impostor = self.enterContext(TlsServer(folder / "server", self.checkpoint, self.of_front))
        envoy = self.enterContext(Envoy(self.bin / "envoy", folder / "envoy", self.of_front, self.authority,
                                        [self.servers[0], impostor], impostors=1))
        until(lambda: envoy.count("cluster.ditserve.ssl.fail_verify_san") > 0, "Envoy has looked at the certificate")
        self.assertEqual(len(envoy.healthy()), 1)

    def test_calls_are_balanced(self):
        with self.load(clients=4) as load:
            load.await_answers(200)
            self.assertEqual(load.stop(), [])
        answered = [server.answered() for server in self.servers]
        print(f"\nbalance: {answered[0]} and {answered[1]} calls", file=sys.stderr)
        self.assertEqual(sum(answered), len(load.answers))
        self.assertGreater(min(answered), len(load.answers) / 4)

    def test_a_replica_that_is_killed_loses_no_call(self):
        with self.load(clients=8, pixels=256) as load:
            load.await_answers(20)
            until(lambda: self.servers[0].metric("ditserve_requests_active") > 0, "the replica has calls")
            self.servers[0].process.kill()
            load.await_answers(60)
            self.assertEqual(load.stop(), [])
        print(f"\nkill: {len(load.answers)} calls, 0 failed, {self.envoy.count('cluster.ditserve.upstream_rq_retry')} asked again",
              file=sys.stderr)
        until(lambda: len(self.envoy.healthy()) == 1, "the replica is seen to be gone")

    def test_a_replica_that_stops_loses_no_call(self):
        with self.load(clients=8, pixels=256) as load:
            load.await_answers(20)
            until(lambda: self.servers[0].metric("ditserve_requests_active") > 0, "the replica has calls")
            self.servers[0].process.send_signal(signal.SIGTERM)
            load.await_answers(60)
            self.assertEqual(self.servers[0].process.wait(), 0)
            load.await_answers(20)
            self.assertEqual(load.stop(), [])
        print(f"\nstop: {len(load.answers)} calls, 0 failed, {self.envoy.count('cluster.ditserve.upstream_rq_retry')} asked again",
              file=sys.stderr)

    def test_drain_lets_nobody_in_and_ends_when_all_is_answered(self):
        def lets_in() -> bool:
            try:
                socket.create_connection(("127.0.0.1", self.envoy.port), timeout=10).close()
            except OSError:
                return False
            return True

        with self.load(clients=2, pixels=2048) as load:
            until(lambda: self.envoy.count("http.grpc.downstream_rq_active") == 2, "both calls are under way")
            self.assertIn("LIVE", get(self.envoy.health_port, "/ready"))
            load.ask_no_more()
            self.signal_servers(signal.SIGSTOP)
            with subprocess.Popen(["bash", SHIPPED / "drain", "127.0.0.1", str(self.envoy.admin_port)]) as drain:
                until(lambda: get(self.envoy.health_port, "/ready") == "", "Envoy is not ready")
                until(lambda: not lets_in(), "nobody is let in")
                self.signal_servers(signal.SIGCONT)
                self.assertEqual(drain.wait(), 0)
            self.assertEqual(self.envoy.count("http.grpc.downstream_rq_active"), 0)
            self.assertEqual(load.stop(), [])
            self.assertGreaterEqual(len(load.answers), 2)

    def signal_servers(self, what: signal.Signals) -> None:
        for server in self.servers:
            server.process.send_signal(what)

    def held(self) -> dict[str, int]:
        """Bytes, by process. Envoy's allocator keeps pages for what comes next: of it, what is allocated."""
        envoy = int(json.loads(get(self.envoy.admin_port, "/memory"))["allocated"])
        return {f"server {i}": memory_bytes(server.process.pid) for i, server in enumerate(self.servers)} | {"Envoy": envoy}

    def test_floods_grow_neither_envoy_nor_a_server_and_silence_none(self):
        with self.load(clients=1) as load:  # What is there to be warm is.
            load.await_answers(20)
            self.assertEqual(load.stop(), [])
        before = self.held()
        for name, attack in ATTACKS.items():
            # Resets are to reach what computes; the others have to be answered without.
            target = self.target(path=FORWARD) if name == "rapid-resets" else self.target()
            with self.subTest(name), HealthWatch(self.target()) as watch:
                report = attack(Attacker(target))
            # It notices later than they leave where it is busy, and holds what they did not read until then.
            until(lambda: self.envoy.count("http.grpc.downstream_cx_active") == 0, "Envoy has let the attacker go")
            now = self.held()
            memory = ", ".join(f"{name} {before[name] / 2**20:.0f} -> {now[name] / 2**20:.0f}" for name in now)
            print(f"\n{report}\n  {watch}\n  MiB: {memory}", file=sys.stderr)
            with self.subTest(name), HealthClient(self.target()) as client:
                client.check()
                self.assertEqual(report.faults(), [], report)
                self.assertEqual(watch.faults(), [], report)
                for process in now:
                    self.assertLess(now[process] - before[process], MOST_GROWTH_BYTES, process)
        with self.load(clients=4) as load:
            load.await_answers(40)
            self.assertEqual(load.stop(), [])


if __name__ == "__main__":
    unittest.main()
