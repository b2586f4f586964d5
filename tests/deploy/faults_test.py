"""What goes wrong under load: which calls are lost, and how long until others are served.

Every test has clients that ask all the time. A call may be answered or end with an error that its test names; one that hangs
fails it, and so does an answer that is not what the others were. The table of all faults is printed at the end.
"""

import math
import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench/load"))
from crowd import Call, Crowd, counted  # noqa: E402
from http2_attacks import client_context, endpoint  # noqa: E402
from http2_connection import (DATA, END_HEADERS, END_STREAM, HEADERS, Connection, HealthClient, Target, frame)  # noqa: E402
from programs import BIN, Server, tiny_checkpoint  # noqa: E402

PATIENCE_SECONDS = 120  # Only what hangs takes that long.
FORWARD = "/ditserve.v1.TransformerService/Forward"
MAX_FRAME = 16384
LONG = 2048  # Pixels a side of a pass that takes long enough to be met under way.
GIB = 1 << 30
HOUR_SECONDS = 3600
COLUMNS = ("fault", "calls", "answered", "lost", "next answer")


def until(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited for {PATIENCE_SECONDS} s in vain: {what}")
        time.sleep(0.01)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def tensor(number: int, *shape: int) -> bytes:
    """A field of the API's: float32 zeros."""
    return field(number, b"\x08\x01" + field(2, b"".join(map(varint, shape))) + field(3, bytes(4 * math.prod(shape))))


def files_written(pid: int) -> list[str]:
    """Regular files that a process has open for writing."""
    written = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            flags = int(Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().split("flags:")[1].split()[0], 8)
            if stat.S_ISREG(descriptor.stat().st_mode) and flags & os.O_ACCMODE != os.O_RDONLY:
                written.append(os.readlink(descriptor))
        except FileNotFoundError:  # Closed meanwhile.
            continue
    return written


class Authority:
    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority",
                      "-days", "1")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")

    def issue(self, name: str, days: int) -> tuple[bytes, bytes]:
        """A certificate and its key. Days may be less than none: its time has ended."""
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", str(days),
                      "-extfile", "names", "-out", f"{name}.pem")
        return (self.folder / f"{name}.pem").read_bytes(), (self.folder / f"{name}.key").read_bytes()

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


class FaultsTest(unittest.TestCase):
    rows: list[tuple[str, ...]] = []

    @classmethod
    def setUpClass(cls):
        cls.addClassCleanup(cls.print_rows)

    @classmethod
    def print_rows(cls):
        lines = [COLUMNS, ("---",) * len(COLUMNS), *sorted(cls.rows)]
        print("", *("| " + " | ".join(line) + " |" for line in lines), sep="\n", file=sys.stderr)

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.checkpoint = tiny_checkpoint(self.folder / "model")
        self.starts = 0

    def serve(self, config: str = "", listen: str = "127.0.0.1:0", before: Callable[[], None] | None = None) -> Server:
        """A server on a port of TCP's, on which another can follow it. Its log is in the folder `start-N`."""
        folder = self.folder / f"start-{self.starts}"
        self.starts += 1
        folder.mkdir(exist_ok=True)
        self.config = folder / "config.yaml"
        self.config.write_text(config or "memory: {device_budget: 2GiB, host_budget: 1GiB}\n")
        server = self.enterContext(Server(folder, "--model", f"tiny={self.checkpoint}", "--config", self.config, "--listen", listen,
                                          before=before))
        self.assertIn("serving", server.greeting)
        server.address = server.greeting.split()[-1]
        return server

    def crowd(self, server: Server, **mix) -> Crowd:
        return self.enterContext(Crowd(server.address, **{"clients": 6, "pixels": (64, 256), "profiles": ("disk", "resident"), **mix}))

    def await_log(self, server: Server, *texts: str) -> None:
        log = Path(server.log.name)
        until(lambda: any(all(text in line for text in texts) for line in log.read_text().splitlines()), f"the log says {texts}")

    def take_stock(self, fault: str, crowd: Crowd, at: float, allowed: set[str]) -> list[Call]:
        """Ends the load and judges it; returns what was lost. `at` is when the fault was."""
        calls = crowd.stop()
        answered = [call for call in calls if call.code == "OK"]
        lost = [call for call in calls if call.code not in ("OK", "CANCELLED")]
        wrong = [call for call in lost if call.code not in allowed]
        self.assertFalse(wrong, f"{counted(wrong)}: {wrong[:1]}")
        outputs = {(call.pixels, call.profile, call.checksum) for call in answered}
        self.assertEqual(len(outputs), len({output[:2] for output in outputs}), f"answers to the same differ: {outputs}")
        after = [call.ended - at for call in answered if call.begun > at]
        self.assertTrue(after, "nobody was served afterwards")
        self.rows.append((fault, str(len(calls)), str(len(answered)), counted(lost) or "none", f"{min(after):.2f} s"))
        return lost

    def test_kill_and_start_again(self):
        server = self.serve()
        crowd = self.crowd(server)
        crowd.await_answers(20)
        until(server.count_requests, "calls are under way")
        at = time.monotonic()
        server.process.kill()
        server.process.wait()
        self.serve(listen=server.address)
        crowd.await_answers(20)
        lost = self.take_stock("`kill -9` under load, started again at once", crowd, at, {"UNAVAILABLE"})
        self.assertTrue(lost, "no call met the fault")

    def test_sigterm_answers_what_was_accepted(self):
        server = self.serve("requests: {max_active: 1}\n")
        crowd = self.crowd(server, clients=4, pixels=(LONG,))
        crowd.await_answers(1)
        accepted = counted_at = 0.0

        def all_accepted() -> bool:
            nonlocal accepted, counted_at
            accepted = time.monotonic()  # Who had asked by then had been let in when all were counted.
            are_there = server.count_requests() == 4
            counted_at = time.monotonic()
            return are_there

        until(all_accepted, "each client has a call that was accepted")
        server.process.send_signal(signal.SIGTERM)
        at = time.monotonic()
        self.await_log(server, "SIGTERM: finishing the calls under way")
        self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)
        self.serve(listen=server.address)
        crowd.await_answers(1)
        lost = self.take_stock("`SIGTERM` under load, started again once it had ended", crowd, at, {"UNAVAILABLE"})
        self.assertEqual([call for call in lost if call.begun < accepted], [])
        self.assertGreaterEqual(sum(call.begun < counted_at and call.ended > accepted for call in crowd.calls), 4)

    def test_sigterm_after_an_answer_of_megabytes(self):
        library = self.build_library("endless_polls")
        server = self.serve(before=lambda: os.environ.update(LD_PRELOAD=str(library)))
        self.assertEqual(server.ditctl("forward", "--height", str(LONG), "--width", str(LONG)).returncode, 0)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)

    def test_full_disk_under_the_log(self):
        folder = self.folder / "start-0"
        folder.mkdir()
        (folder / "log").symlink_to("/dev/full")
        server = self.serve()
        at = time.monotonic()
        with self.assertRaises(OSError):
            os.write(server.log.fileno(), b"full")
        crowd = self.crowd(server)
        crowd.await_answers(60)
        self.assertEqual(files_written(server.process.pid), [])
        self.assertEqual(self.take_stock("the log's disk is full (`/dev/full`)", crowd, at, set()), [])
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)

    def test_it_writes_no_file_but_its_log(self):
        server = self.serve()
        crowd = self.crowd(server)
        crowd.await_answers(20)
        self.assertEqual(files_written(server.process.pid), [server.log.name])
        crowd.stop()

    def test_a_shard_that_is_moved_away_or_not_readable(self):
        server = self.serve()
        crowd = self.crowd(server)
        crowd.await_answers(20)
        at = time.monotonic()
        shards = sorted(self.checkpoint.glob("*.safetensors"))
        shards[0].chmod(0)
        shards[0].rename(self.folder / "away")
        crowd.await_answers(60)
        self.assertEqual(self.take_stock("a shard is moved away, and `chmod 0`", crowd, at, set()), [])
        again = subprocess.run([BIN / "ditserve", "--model", f"tiny={self.checkpoint}", "--listen", f"unix:{self.folder}/socket",
                                "--admin-listen", "none", "--metrics-listen", "none"], capture_output=True, text=True)
        self.assertEqual(again.returncode, 1, again.stderr)
        self.assertIn(shards[0].name, again.stderr.splitlines()[-1])

    def test_a_shard_that_is_touched(self):
        server = self.serve()
        crowd = self.crowd(server, profiles=("disk",))  # Reads all of it, each time.
        crowd.await_answers(20)
        at = time.monotonic()
        for shard in self.checkpoint.glob("*.safetensors"):
            os.utime(shard)
        touched = time.monotonic()
        crowd.until(lambda: any(call.code == "DATA_LOSS" for call in crowd.calls), "the damage is found")
        until(lambda: "NOT_SERVING" in server.ditctl("health").stdout, "health tells")
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)
        restarted = time.monotonic()
        self.serve(listen=server.address)
        crowd.await_answers(20)
        self.take_stock("shards are touched; the server is started again", crowd, at, {"DATA_LOSS", "UNAVAILABLE"})
        late = [call for call in crowd.calls if call.code == "OK" and touched < call.begun < restarted]
        self.assertEqual(late, [], "read after the change")

    def test_a_configuration_that_is_half_written_at_reload(self):
        server = self.serve()
        crowd = self.crowd(server)
        crowd.await_answers(20)
        at = time.monotonic()
        whole = "memory: {device_budget: 3GiB, host_budget: 2GiB}\nrequests:\n  max_active: 16\n"
        self.config.write_text(whole[:len(whole) // 3])
        server.process.send_signal(signal.SIGHUP)
        self.await_log(server, "SIGHUP", "config.yaml:")
        self.assertEqual(server.budgets(), [2 * GIB, GIB])
        crowd.await_answers(20)
        self.config.write_text(whole)
        server.process.send_signal(signal.SIGHUP)
        self.await_log(server, "SIGHUP: budgets of")
        self.assertEqual(server.budgets(), [3 * GIB, 2 * GIB])
        crowd.await_answers(20)
        self.assertEqual(self.take_stock("`SIGHUP` with a file half written, then whole", crowd, at, set()), [])

    def test_certificates_that_are_wrong_or_expired(self):
        authority = Authority(self.folder / "authority")
        good, expired = authority.issue("good", 1), authority.issue("expired", -1)
        certificate, key = self.folder / "server.pem", self.folder / "server.key"

        def put(pair: tuple[bytes, bytes]) -> None:
            for file, content in zip((certificate, key), pair):
                file.with_suffix(".new").write_bytes(content)
                file.with_suffix(".new").rename(file)

        put(good)
        server = self.serve(f"tls: {{certificate: {certificate}, private_key: {key}}}\n"
                            f"listen: {{health_address: '127.0.0.1:0'}}\n")
        crowd = self.crowd(server, ca=str(authority.folder / "ca.pem"))
        crowd.await_answers(20)
        host, port = endpoint(server.address)
        target = Target(host, port, client_context(authority.folder / "ca.pem"), "localhost")
        at = time.monotonic()
        put((good[0], expired[1]))
        self.await_log(server, "TLS certificates stay as they were", "server.key: ")
        with HealthClient(target) as client:
            client.check()
        put((good[0][:100], good[1]))
        until(lambda: Path(server.log.name).read_text().count("TLS certificates stay as they were") >= 2, "a file cut short is told")
        with HealthClient(target) as client:
            client.check()
        put(expired)
        self.await_log(server, "is no longer valid")
        crowd.await_answers(20)  # On the connections that are there.
        with Connection(target) as refused:
            self.assertIn("expired", refused.fate.end)
        put(good)

        def is_let_in() -> bool:
            with Connection(target) as connection:
                return connection.is_open

        restored = time.monotonic()
        until(is_let_in, "the good certificate is served again")
        print(f"\na good certificate in place of an expired one: served after {time.monotonic() - restored:.2f} s", file=sys.stderr)
        crowd.await_answers(20)
        self.assertEqual(self.take_stock("certificates: wrong key, cut short, expired, good again", crowd, at, set()), [])

    def build_library(self, name: str) -> Path:
        """One to stand in front of the C library."""
        library = self.folder / f"{name}.so"
        subprocess.run(["cc", "-std=c11", "-O1", "-shared", "-fPIC", ROOT / f"tests/deploy/{name}.c", "-o", library, "-ldl"], check=True)
        return library

    def serve_by_a_clock_that_steps(self, config: str = "") -> tuple[Server, Callable[[int], None]]:
        """A server, and what sets its wall clock so many seconds before the machine's."""
        shim, shift = self.build_library("wall_clock"), self.folder / "shift"
        shift.write_bytes(struct.pack("=q", 0))

        def step_to(seconds: int) -> None:
            with open(shift, "r+b") as file:
                file.write(struct.pack("=q", seconds))

        def before():
            os.environ |= {"LD_PRELOAD": str(shim), "WALL_CLOCK_SHIFT": str(shift)}

        return self.serve(config, before=before), step_to

    def test_steps_of_the_wall_clock_move_no_deadline(self):
        server, step_to = self.serve_by_a_clock_that_steps("requests: {max_active: 1}\n")
        target = Target(*endpoint(server.address), path=FORWARD)
        crowd = self.crowd(server, clients=3, pixels=(LONG,))
        crowd.await_answers(1)
        # What is urgent is always there, so that what is not waits for four seconds: longer than the steps take.
        with Connection(target) as patient:
            self.ask_without_urgency(patient, "1800S")
            until(lambda: server.count_requests() == 4, "the patient call waits")
            for seconds in (HOUR_SECONDS, -HOUR_SECONDS, 0):
                with Connection(target) as hasty:
                    self.ask_without_urgency(hasty, "1S")
                    at = time.monotonic()
                    step_to(seconds)
                    self.assertTrue(hasty.await_frames(lambda: hasty.fate.answered or hasty.fate.reset), "it outlived its deadline")
                    self.assertEqual(hasty.data, b"")
            crowd.await_answers(1)
            self.assertEqual(self.take_stock("the wall clock steps by +1 h, -2 h, +1 h", crowd, at, set()), [])
            self.assertTrue(patient.await_frames(lambda: len(patient.data) > 64 * 64), "it was not answered before its deadline")
        step_to(-HOUR_SECONDS)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)

    def test_a_step_of_the_wall_clock_prolongs_no_deadline_where_nobody_else_calls(self):
        server, step_to = self.serve_by_a_clock_that_steps("requests: {max_active: 1}\n")
        longest = server.forward(2 * LONG)
        until(lambda: server.count_requests() == 1, "the server computes")
        with Connection(Target(*endpoint(server.address), path=FORWARD)) as waiting:
            self.ask_without_urgency(waiting, "1S")
            until(lambda: server.count_requests() == 2, "the call waits")
            step_to(-HOUR_SECONDS)
            self.assertTrue(waiting.await_frames(lambda: waiting.fate.answered or waiting.fate.reset), "it outlived its deadline")
            self.assertEqual(waiting.data, b"")
            self.assertIsNone(longest.poll())
        longest.send_signal(signal.SIGINT)
        longest.communicate()

    def test_steps_of_the_wall_clock_stop_no_watcher(self):
        server, step_to = self.serve_by_a_clock_that_steps()
        crowd = self.crowd(server, watchers=4, interval_seconds=0.1)
        for seconds in (HOUR_SECONDS, -HOUR_SECONDS):
            seen = len(crowd.updates)
            step_to(seconds)
            crowd.await_answers(100)
            crowd.until(lambda: len(crowd.updates) >= seen + 40, "watchers are told as before")
        for watcher in {update["watcher"] for update in crowd.updates}:
            times = [update["time"] for update in crowd.updates if update["watcher"] == watcher]
            self.assertEqual(times, sorted(times))

    def ask_without_urgency(self, connection: Connection, timeout: str) -> None:
        """For a pass of 64 pixels a side, with a deadline that only the server keeps."""
        stream = connection.next_stream()
        request = tensor(2, 1, 16, 8, 8) + tensor(3, 1) + tensor(4, 1, 1, 3584) + b"\x30\x40\x38\x40\x60\x02"  # 64 by 64, batch.
        connection.send(frame(HEADERS, END_HEADERS, stream, connection.target.headers(("grpc-timeout", timeout))))
        message = struct.pack(">BI", 0, len(request)) + request
        pieces = [message[i:i + MAX_FRAME] for i in range(0, len(message), MAX_FRAME)]
        for piece in pieces:
            connection.send(frame(DATA, END_STREAM if piece is pieces[-1] else 0, stream, piece))


if __name__ == "__main__":
    unittest.main()
