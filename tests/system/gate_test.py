"""A real server's door: TLS, tokens, floods of connections, and attacks on HTTP/2, after which all is served."""

import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from programs import Server, tiny_checkpoint

sys.path.insert(0, str(Path(__file__).parent.parent / "deploy"))
from http2_attacks import ATTACKS, Attacker, HealthWatch, client_context, endpoint, memory_bytes  # noqa: E402
from http2_connection import END_HEADERS, HEADERS, PREFACE, Connection, HealthClient, Target, frame, settings  # noqa: E402
from tls_attacks import TLS_ATTACKS  # noqa: E402

TOKEN = "0123456789abcdef"
FORWARD = "/ditserve.v1.TransformerService/Forward"
INFER = "/inference.GRPCInferenceService/ModelInfer"
MOST_GROWTH = 64 << 20
PATIENCE_SECONDS = 60  # Only what is held for good takes that long.


def certificates(folder: Path) -> None:
    """An authority, ca.pem, and what it issued to localhost, server.pem with server.key."""
    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "1")
    openssl("req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-out", "server.pem", "-days", "1",
            "-extfile", "names")


def field(number: int, value: bytes) -> bytes:
    """Of a protobuf message, told with its length."""
    length, size = bytearray(), len(value)
    while size >= 128:
        length.append(size % 128 | 128)
        size //= 128
    return bytes([number << 3 | 2, *length, size]) + value


def growing_messages(size: int) -> list[bytes]:
    """ModelInferRequests of twice that many bytes. The first half is a tensor, the second becomes many times as much when it
    is parsed: unknown fields, groups, empty objects and strings, a list of integers."""
    units = b"\x78\x01", b"\x7a\x00", b"\x7b\x7c", b"\x2a\x00", b"\x3a\x00"
    rests = [unit * (size // len(unit)) for unit in units] + [field(5, field(5, field(3, bytes(size))))]
    return [field(7, bytes(size)) + rest for rest in rests]


def senseless_message(size: int) -> bytes:
    """A ForwardRequest of so many bytes that has nothing but latents, whose shape is not told."""
    return field(2, field(3, bytes(size - 10)))


def answers_to(message: bytes, target: Target) -> int:
    """Sends it in a call of its own."""
    with Connection(target) as connection:
        stream = connection.next_stream()
        connection.send(frame(HEADERS, END_HEADERS, stream, target.headers()))
        connection.send_message(stream, message)
        connection.await_frames(lambda: connection.fate.answered > 0)
        return connection.fate.answered


class GateTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.checkpoint = tiny_checkpoint(self.folder / "model")

    @contextmanager
    def serving(self, config: str = "", before=None):
        """A server on a port of TCP's; gives it with its address. `before` is called in its process."""
        (self.folder / "config.yaml").write_text(config)
        with Server(self.folder, "--model", f"tiny={self.checkpoint}", "--config", self.folder / "config.yaml", "--listen",
                    "127.0.0.1:0", before=before) as server:
            server.address = server.greeting.split()[-1]
            yield server, endpoint(server.address)

    def health_endpoint(self, server: Server) -> tuple[str, int]:
        return endpoint(re.search(r"health on (\S+)", server.await_log("health on"))[1])

    def assert_forwards(self, server: Server, *arguments: str) -> None:
        forward = server.forward(64, *arguments)
        _, errors = forward.communicate()
        self.assertEqual(forward.returncode, 0, errors)

    def attack(self, server: Server, target: Target, health: Target, scale: float = 1, attacks=ATTACKS) -> None:
        """All of `attacks`, each of which takes place; health is served all the time, and memory is not held."""
        before = memory_bytes(server.process.pid)
        for attack in attacks.values():
            with HealthWatch(health) as watch:
                report = attack(Attacker(target, scale=scale))
            print(report, watch, sep="\n  ", flush=True)
            self.assertEqual(report.faults(), [], report)
            self.assertEqual(watch.faults(), [], report)
            with HealthClient(health) as client:
                client.check()
        growth = memory_bytes(server.process.pid) - before
        print(f"  memory: {growth / 2**20:.0f} MiB more than {before / 2**20:.0f}")
        self.assertLess(growth, MOST_GROWTH)

    def test_attacks_leave_no_memory_held_and_nobody_unserved(self):
        with self.serving() as (server, address):
            self.assert_forwards(server)
            self.attack(server, Target(*address), Target(*address))
            self.attack(server, Target(*address, path=FORWARD), Target(*address))
            self.assert_forwards(server)

    def test_refusals_that_nobody_reads_take_no_memory_at_any_moment(self):
        with self.serving() as (server, address):
            self.assert_forwards(server)
            before = memory_bytes(server.process.pid, "VmHWM")
            report = Attacker(Target(*address)).unread_refusals()
            growth = memory_bytes(server.process.pid, "VmHWM") - before
            print(f"{report}; {growth / 2**20:.0f} MiB more at most than {before / 2**20:.0f}")
            self.assertLess(growth, MOST_GROWTH)
            self.assert_forwards(server)

    def test_idle_connections_keep_no_probe_out(self):
        with self.serving("listen: {health_address: '127.0.0.1:0'}\n") as (server, _):
            health = Target(*self.health_endpoint(server))

            def probe() -> None:
                with HealthClient(health) as client:
                    client.check()

            report = Attacker(health, meanwhile=probe).idle_connections()
            self.assertEqual(report.faults(), [], report)
            self.assertGreater(report.ends["open to the end"], 60, "the address was not full")

    def test_under_tls_who_has_no_token_is_refused_whatever_they_send(self):
        certificates(self.folder)
        (self.folder / "tokens.yaml").write_text(
            f"tokens: [{{name: a, token: {TOKEN}, scopes: [infer, read], max_calls: 8}}]\n")
        (self.folder / "token").write_text(f"{TOKEN}\n")
        config = (f"tls: {{certificate: {self.folder}/server.pem, private_key: {self.folder}/server.key}}\n"
                  f"access: {{tokens: {self.folder}/tokens.yaml}}\nlisten: {{health_address: '127.0.0.1:0'}}\n")
        believing = ["--ca", f"{self.folder}/ca.pem"]
        with self.serving(config=config) as (server, address):
            tls = client_context(self.folder / "ca.pem")
            self.attack(server, Target(*address, tls, "localhost", path=FORWARD), Target(*address, tls, "localhost"), 0.05)
            self.assertNotIn("request rpc", (self.folder / "log").read_text())
            refused = server.ditctl("models", *believing)
            self.assertIn("UNAUTHENTICATED", refused.stderr)
            listed = server.ditctl("models", *believing, "--token-file", f"{self.folder}/token")
            self.assertEqual(listed.returncode, 0, listed.stderr)
            self.assert_forwards(server, *believing, "--token-file", f"{self.folder}/token")
            self.assertNotEqual(server.ditctl("models").returncode, 0)  # In plain text.

    def test_floods_of_handshakes_leave_no_memory_held_and_health_served(self):
        certificates(self.folder)
        config = (f"tls: {{certificate: {self.folder}/server.pem, private_key: {self.folder}/server.key}}\n"
                  "listen: {health_address: '127.0.0.1:0'}\n")
        with self.serving(config=config) as (server, address):
            health = self.health_endpoint(server)
            tls = client_context(self.folder / "ca.pem")
            self.attack(server, Target(*address, tls, "localhost"), Target(*health), attacks=TLS_ATTACKS)
            self.assert_forwards(server, "--ca", f"{self.folder}/ca.pem")

    def test_who_shows_a_certificate_may_come_again(self):
        certificates(self.folder)
        config = (f"tls: {{certificate: {self.folder}/server.pem, private_key: {self.folder}/server.key, "
                  f"client_ca: {self.folder}/ca.pem}}\n")
        with self.serving(config=config) as (_, address):
            for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
                tls = client_context(self.folder / "ca.pem")
                tls.minimum_version = tls.maximum_version = version
                tls.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
                session = None
                for _ in range(2):  # The second time with what the first was given to go on with, if anything.
                    with socket.create_connection(address) as plain, tls.wrap_socket(
                            plain, server_hostname="localhost", session=session) as connection:
                        connection.sendall(PREFACE + settings({}))
                        self.assertTrue(connection.recv(9))
                        session = connection.session

    def test_messages_that_grow_when_they_are_parsed_take_no_more_than_twice_their_bytes(self):
        messages = growing_messages(8 << 20)
        with self.serving() as (server, address):
            self.assert_forwards(server)
            before = memory_bytes(server.process.pid, "VmHWM")

            with ThreadPoolExecutor(len(messages)) as pool:
                answered = pool.map(lambda message: answers_to(message, Target(*address, path=INFER)), messages)
                self.assertEqual(list(answered), [1] * len(messages))
            growth = memory_bytes(server.process.pid, "VmHWM") - before
            print(f"{sum(map(len, messages)) / 2**20:.0f} MiB of messages: {growth / 2**20:.0f} MiB more than {before / 2**20:.0f}")
            self.assertLess(growth, sum(2 * len(message) + (1 << 20) for message in messages))
            self.assert_forwards(server)

    def test_large_messages_that_are_refused_leave_no_memory_held(self):
        message = senseless_message(64 << 20)
        with self.serving() as (server, address):
            self.assert_forwards(server)
            before = memory_bytes(server.process.pid)

            with ThreadPoolExecutor(12) as pool:
                answered = pool.map(lambda _: answers_to(message, Target(*address, path=FORWARD)), range(12))
                self.assertEqual(list(answered), [1] * 12)
            most = memory_bytes(server.process.pid, "VmHWM") - before
            self.assertGreater(most, MOST_GROWTH, "no message came as a whole")
            # It is given back once all are answered, by a thread that hurries for nobody.
            give_up = time.monotonic() + PATIENCE_SECONDS
            while (growth := memory_bytes(server.process.pid) - before) >= MOST_GROWTH:
                self.assertLess(time.monotonic(), give_up, f"{growth / 2**20:.0f} MiB stay, of {most / 2**20:.0f}")
                time.sleep(0.1)
            print(f"12 refused messages of 64 MiB: {most / 2**20:.0f} MiB at most, {growth / 2**20:.0f} MiB afterwards")
            self.assert_forwards(server)

    def test_what_reaches_nobody_is_no_attack_and_no_answer_is_no_health(self):
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))  # And does not listen.
            target = Target(*deaf.getsockname())
            for attack in ATTACKS.values():
                with HealthWatch(target) as watch:
                    report = attack(Attacker(target, scale=0.01))
                self.assertTrue(report.faults(), report)
                self.assertTrue(watch.failures, report)

    def test_health_that_is_slower_than_the_environment_allows_is_a_fault(self):
        watch = HealthWatch(Target("127.0.0.1", 1))
        watch.latencies = [0.001] * 98 + [0.06, 0.07]
        with patch.dict(os.environ):
            os.environ.pop("ATTACK_P99_MS", None)
            self.assertEqual(watch.faults(), [])
            os.environ["ATTACK_P99_MS"] = "100"
            self.assertEqual(watch.faults(), [])
            os.environ["ATTACK_P99_MS"] = "50"
            (fault,) = watch.faults()
            self.assertIn("p99 70.0 ms", fault)

    def test_it_serves_again_after_its_descriptors_ran_out(self):
        def few_descriptors():
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

        with self.serving(before=few_descriptors) as (server, address):
            connections = [socket.create_connection(address) for _ in range(200)]
            for connection in connections:
                connection.close()
            self.assert_forwards(server)


if __name__ == "__main__":
    unittest.main()
