"""What signals do to a ditserve that is at work."""

import os
import signal
import sys
import unittest
from pathlib import Path

from programs import ProgramTest, Server

sys.path.insert(0, str(Path(__file__).parent.parent / "deploy"))
from http2_attacks import endpoint  # noqa: E402
from http2_connection import END_HEADERS, HEADERS, INITIAL_WINDOW_SIZE, Connection, Target, frame, window_update  # noqa: E402

GIB = 1 << 30
LONG = 2048  # Pixels a side of a pass that takes long enough to be met under way.
SLOW_READS = 12


class SignalsTest(ProgramTest):
    def serve(self, *flags) -> Server:
        return Server(self.folder, "--model", f"tiny={self.checkpoint}", *flags)

    def test_sigterm_under_load_answers_what_was_accepted(self):
        with self.serve("--config", self.write("one.yaml", "requests: {max_active: 1}\n")) as server:
            accepted = server.forwards_under_way(LONG, 3)
            server.process.send_signal(signal.SIGTERM)
            server.await_log("SIGTERM: finishing the calls under way")
            late = server.forward(64)
            for request in accepted:
                output, errors = request.communicate()
                self.assertEqual(request.returncode, 0, errors)
                self.assertIn("output", output)
            self.assertIn("UNAVAILABLE", late.communicate()[1])
            self.assertEqual(server.process.wait(), 0)

    def test_while_what_was_accepted_goes_on_it_is_alive_and_not_ready_and_clients_are_sent_elsewhere(self):
        config = self.write("one.yaml", "requests: {max_active: 1}\n")
        with self.serve("--config", config, "--listen", "127.0.0.1:0") as server:
            server.address = server.greeting.split()[-1]
            accepted = server.forwards_under_way(LONG, 3)
            with Connection(Target(*endpoint(server.address))) as client:
                client.settle()
                server.process.send_signal(signal.SIGTERM)
                self.assertTrue(client.await_frames(lambda: client.fate.goaways > 0), client.fate)
            # On connections of their own.
            told = [server.ditctl("health", "--service", service).stdout for service in ("readiness", "liveness")]
            self.assertEqual(told, ["NOT_SERVING\n", "SERVING\n"])
            for request in accepted:
                _, errors = request.communicate()
                self.assertEqual(request.returncode, 0, errors)
            self.assertEqual(server.process.wait(), 0)

    def test_who_reads_slowly_gets_all_of_an_answer_that_was_there_at_sigterm(self):
        with self.serve("--listen", "127.0.0.1:0") as server:
            target = Target(*endpoint(server.greeting.split()[-1]), path="/ditserve.v1.ModelService/ListModels")
            with Connection(target, first_settings={INITIAL_WINDOW_SIZE: 0}) as client:
                stream = client.next_stream()
                client.send(frame(HEADERS, END_HEADERS, stream, target.headers()))
                client.send_message(stream, b"")
                self.assertTrue(client.await_frames(lambda: client.fate.answered > 0), client.fate)
                server.process.send_signal(signal.SIGTERM)
                for _ in range(SLOW_READS):
                    client.send(window_update(stream, 1))
                    got = len(client.data)
                    self.assertTrue(client.await_frames(lambda: len(client.data) > got), client.fate)
                client.send(window_update(stream, 1 << 20))
                self.assertTrue(client.await_frames(lambda: client.fate.ended > 0), client.fate)
                self.assertGreater(len(client.data), SLOW_READS)
                self.assertEqual(len(client.data), 5 + int.from_bytes(client.data[1:5], "big"))
            self.assertEqual(server.process.wait(), 0)

    def test_sigterm_gives_what_was_accepted_no_more_than_the_drain_timeout(self):
        config = self.write("no-time.yaml", "requests: {max_active: 1, drain_timeout_seconds: 0}\n")
        with self.serve("--config", config) as server:
            accepted = server.forwards_under_way(LONG, 3)
            server.process.send_signal(signal.SIGTERM)
            ended = [request.communicate()[1] for request in accepted if request.wait() != 0]
            self.assertTrue(ended, "none was ended")
            for errors in ended:
                self.assertIn("UNAVAILABLE: the server is stopping", errors)
            self.assertEqual(server.process.wait(), 0)

    def test_a_second_signal_ends_it_at_once(self):
        with self.serve() as server:
            accepted = server.forwards_under_way(LONG)
            server.process.send_signal(signal.SIGSTOP)  # So that it finds both signals at once, SIGINT first.
            os.waitpid(server.process.pid, os.WUNTRACED)
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGINT)
            server.process.send_signal(signal.SIGCONT)
            self.assertEqual(server.process.wait(), 128 + signal.SIGTERM)
            for request in accepted:
                request.communicate()

    def test_sighup_takes_the_budgets_of_a_valid_file_over(self):
        config = self.write("ditserve.yaml", "memory: {device_budget: 2GiB, host_budget: 1GiB}\n")
        with self.serve("--config", config) as server:
            self.assertEqual(server.budgets(), [2 * GIB, GIB])
            config.write_text("memory: {device_budget: 3GiB, host_budget: 2GiB}\n")
            server.process.send_signal(signal.SIGHUP)
            server.await_log("SIGHUP: budgets of")
            self.assertEqual(server.budgets(), [3 * GIB, 2 * GIB])

    def test_sighup_with_an_invalid_file_changes_nothing_and_names_the_place(self):
        config = self.write("ditserve.yaml", "memory: {device_budget: 2GiB, host_budget: 1GiB}\n")
        with self.serve("--config", config) as server:
            config.write_text("memory: {device_budget: 3GiB, host_budget: much}\n")
            server.process.send_signal(signal.SIGHUP)
            self.assertIn("ditserve.yaml:1:", server.await_log("SIGHUP: "))
            self.assertEqual(server.budgets(), [2 * GIB, GIB])
            self.assertEqual(server.forward(64).wait(), 0)

    def test_sighup_with_a_budget_that_is_refused_changes_neither(self):
        config = self.write("ditserve.yaml", "memory: {device_budget: 2GiB, host_budget: 1GiB}\n")
        with self.serve("--config", config) as server:
            config.write_text("memory: {device_budget: 3GiB, host_budget: 1KiB}\n")
            server.process.send_signal(signal.SIGHUP)
            self.assertIn("a budget of 1024 bytes is less than", server.await_log("SIGHUP: "))
            self.assertEqual(server.budgets(), [2 * GIB, GIB])

    def test_sighup_does_not_turn_following_pressure_on(self):
        config = self.write("ditserve.yaml", "memory: {device_budget: 2GiB, follow_pressure: false}\n")
        with self.serve("--config", config) as server:
            config.write_text("memory: {device_budget: 3GiB, follow_pressure: true}\n")
            server.process.send_signal(signal.SIGHUP)
            server.await_log("SIGHUP: budgets of")
            self.assertIn("memory.follow_pressure has changed, and stays as it was", (self.folder / "log").read_text())

    def test_sighup_with_an_invalid_profile_changes_nothing(self):
        config = self.write("ditserve.yaml", "memory: {device_budget: 2GiB, host_budget: 1GiB}\n")
        with self.serve("--config", config) as server:
            config.write_text("memory: {device_budget: 3GiB}\nprofiles:\n  mine: {computation_dtype: int4}\n")
            server.process.send_signal(signal.SIGHUP)
            self.assertIn("ditserve.yaml:3:10: profiles.mine.computation_dtype", server.await_log("SIGHUP: "))
            self.assertEqual(server.budgets(), [2 * GIB, GIB])

    def test_sighup_says_what_needs_a_restart(self):
        config = self.write("ditserve.yaml", "memory: {device_budget: 2GiB}\n")
        with self.serve("--config", config) as server:
            config.write_text("memory: {device_budget: 3GiB}\nrequests: {max_batch: 3}\nlog: {level: debug}\n")
            server.process.send_signal(signal.SIGHUP)
            server.await_log("SIGHUP: budgets of")
            log = (self.folder / "log").read_text()
            self.assertIn("requests.max_batch has changed, and stays as it was until the server is restarted", log)
            self.assertEqual(log.count("has changed"), 1)
            self.assertEqual(server.budgets()[0], 3 * GIB)

    def test_sigterm_while_idle_ends_it_cleanly(self):
        with self.serve() as server:
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(), 0)


if __name__ == "__main__":
    unittest.main()
