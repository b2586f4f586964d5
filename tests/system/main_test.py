"""ditserve's main: flags, the check of a configuration, exit codes."""

import json
import os
import socket
import subprocess
import unittest
from pathlib import Path

from programs import BIN, ProgramTest, Server


class MainTest(ProgramTest):
    def run_ditserve(self, *arguments) -> subprocess.CompletedProcess:
        return subprocess.run([BIN / "ditserve", *arguments], capture_output=True, text=True, cwd=self.folder)

    def assert_ends(self, done: subprocess.CompletedProcess, code: int, out: str = "", err: str = "") -> None:
        self.assertEqual(done.returncode, code, done)
        self.assertIn(out, done.stdout)
        self.assertIn(err, done.stderr)

    def test_help_and_version_are_no_errors(self):
        self.assert_ends(self.run_ditserve("--help"), 0, out="--config")
        self.assert_ends(self.run_ditserve("--version"), 0, out="ditserve ")

    def test_a_wrong_flag_is_wrong_usage(self):
        self.assert_ends(self.run_ditserve("--frobnicate"), 2, err="--frobnicate")

    def test_check_says_whether_a_configuration_is_valid_and_serves_nothing(self):
        models = f"models: [{{name: tiny, path: {self.checkpoint}}}]\n"
        valid = self.write("valid.yaml", models)
        self.assert_ends(self.run_ditserve("--config", valid, "--check"), 0, out="the configuration is valid")
        wrong = self.write("wrong.yaml", models + "requests:\n  max_active: 0\n")
        self.assert_ends(self.run_ditserve("--config", wrong, "--check"), 2, err="wrong.yaml:3:3: requests.max_active")
        profile = self.write("profile.yaml", models + "default_profile: none-such\n")
        self.assert_ends(self.run_ditserve("--config", profile, "--check"), 2, err="none-such")

    def test_a_configuration_that_is_not_there_is_wrong_usage(self):
        self.assert_ends(self.run_ditserve("--config", "none-such.yaml"), 2, err="none-such.yaml")

    def test_check_of_a_device_tells_what_each_profile_takes_there(self):
        done = self.run_ditserve("--check", "--device", "cpu")
        self.assert_ends(done, 0, out="20.4 billion parameters, 38.1 GiB (as published")
        rows = [line.split() for line in done.stdout.splitlines()]
        self.assertEqual([row[0] for row in rows[-7:]],
                         ["resident", "host-offload", "fp8-host", "dynamic", "disk", "disk-fp8-device", "fp8-compute"])
        done = self.run_ditserve("--check", "--device", "cpu", "--model", f"tiny={self.checkpoint}")
        self.assert_ends(done, 0, out="tiny: ")
        done = self.run_ditserve("--check", "--device", "cpu", "--model", "tiny=nowhere")
        self.assert_ends(done, 1, err="model 'tiny' at nowhere")

    def test_check_of_a_device_that_is_not_there_says_why(self):
        model = ("--model", f"tiny={self.checkpoint}")
        self.assert_ends(self.run_ditserve("--check", "--device", "cuda:0", *model), 1,
                         err="device cuda:0: libditserve_cuda.so is not installed")
        file = self.write("cuda.yaml", "device: {name: 'cuda:0'}\n")
        self.assert_ends(self.run_ditserve("--check", "--config", file, *model), 0, out="the configuration is valid")

    def test_a_checkpoint_that_is_not_there_is_a_failure_that_names_its_whole_path(self):
        done = self.run_ditserve("--listen", f"unix:{self.folder}/socket", "--admin-listen", "none",
                                 "--metrics-listen", "none",
                                 "--model", f"tiny={self.folder}/none-such")
        self.assert_ends(done, 1, err=f"{self.folder}/none-such")

    def test_an_address_that_is_taken_is_a_failure(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            done = self.run_ditserve("--listen", address, "--admin-listen", "none", "--metrics-listen", "none",
                                     "--model", f"tiny={self.checkpoint}")
        self.assert_ends(done, 1, err=address)

    def test_a_server_says_what_it_serves_and_where_and_answers(self):
        with Server(self.folder, "--model", f"tiny={self.checkpoint}") as server:
            self.assertEqual(server.greeting, f"ditserve: serving tiny on {server.address}\n")
            self.assertEqual(server.ditctl("health").returncode, 0)
            output, errors = server.forward(64).communicate()
            self.assertIn("output", output, errors)

    def test_the_log_warns_of_metrics_that_other_machines_may_read(self):
        for address, warns in ("0.0.0.0:0", True), ("127.0.0.1:0", False):
            with Server(self.folder, "--model", f"tiny={self.checkpoint}", "--metrics-listen", address):
                log = (self.folder / "log").read_text()
            self.assertEqual("without TLS or token: metrics.address is" in log, warns, log)

    def test_standard_streams_that_are_closed_stay_no_sockets(self):
        address = f"unix:{self.folder}/socket"
        closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
        flags = ["--listen", address, "--admin-listen", "none", "--metrics-listen", "none", "--log-level", "debug"]
        with subprocess.Popen([*closed, BIN / "ditserve", *flags, "--model", f"tiny={self.checkpoint}"]) as server:
            try:
                done = subprocess.run(
                    [BIN / "ditctl", "forward", "--address", address, "--height", "64", "--width", "64",
                     "--wait-seconds", "60"], capture_output=True, text=True)
                streams = [(Path("/proc") / str(server.pid) / "fd" / str(stream)).readlink() for stream in range(3)]
            finally:
                server.terminate()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(streams, [Path("/dev/null")] * 3)
        self.assertEqual(server.returncode, 0)

    def test_threads_that_compute_look_out_briefly_where_nobody_says_how_long(self):
        flags = ["--model", f"tiny={self.checkpoint}"]
        for told, expected in ({}, {"GOMP_SPINCOUNT": "10000"}), ({"OMP_WAIT_POLICY": "active"},) * 2:
            others = {name: value for name, value in os.environ.items() if name not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
            with Server(self.folder, *flags, environment=others | told) as server:
                process = Path(f"/proc/{server.process.pid}")
                variables = (process / "environ").read_text().split("\0")
                self.assertEqual((process / "comm").read_text(), "ditserve\n")
            found = dict(variable.split("=", 1) for variable in variables if variable.startswith(("GOMP_", "OMP_WAIT")))
            self.assertEqual(found, expected)

    def test_a_probe_tells_whether_the_server_is_ready(self):
        flags = ["--model", f"tiny={self.checkpoint}"]
        probe = ["--listen", f"unix:{self.folder}/socket", "--probe", *flags]
        done = self.run_ditserve(*probe)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"ditserve: unix:{self.folder}/socket: ", done.stderr)
        with Server(self.folder, *flags):
            self.assertEqual(self.run_ditserve(*probe).returncode, 0)

    def test_a_request_has_a_line_of_json_and_so_has_all_else(self):
        with Server(self.folder, "--model", f"tiny={self.checkpoint}", "--log-format", "json") as server:
            self.assertEqual(server.forward(64).wait(), 0)
            self.assertEqual(server.forward(64, "--profile", "none").wait(), 1)
            server.await_log("NOT_FOUND")
            self.assertEqual(server.ditctl("budget", "device", "--bytes", "1GiB").returncode, 0)
            lines = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
        self.assertIn("SetBudget: the budget of cpu", lines[-1]["message"])  # Whichever part of the program tells.
        answered, refused = [line for line in lines if line["message"] == "request"]
        self.assertEqual((answered["code"], answered["model"], answered["profile"]), ("OK", "tiny", "disk"))
        self.assertGreater(answered["disk_read_bytes"], 0)
        self.assertGreaterEqual(answered["seconds"], answered["compute_seconds"])
        self.assertIn('profile: "none"', refused["error"])

    def test_what_grpc_says_goes_where_our_lines_go_for_developers(self):
        environment = os.environ | {"GRPC_VERBOSITY": "debug"}  # It says how it polls, for one.
        for level, levels in (("debug", {"debug"}), ("info", set())):
            with Server(self.folder, "--model", f"tiny={self.checkpoint}", "--log-format", "json", "--log-level", level,
                        environment=environment) as server:
                self.assertEqual(server.forward(64).wait(), 0)
                lines = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
            said = {line["level"] for line in lines if line.get("message", "").startswith("grpc: ")}
            self.assertEqual(said, levels)

    def test_an_administrator_needs_the_token_of_the_file(self):
        tokens = self.write("tokens.yaml", "tokens: [{name: a, token: 0123456789abcdef, scopes: [admin, read]}]\n")
        config = self.write("ditserve.yaml", f"access: {{tokens: {tokens}}}\n")
        token = self.write("token", "0123456789abcdef\n")
        with Server(self.folder, "--model", f"tiny={self.checkpoint}", "--config", config) as server:
            refused = server.ditctl("budget", "device", "--bytes", "1GiB")
            self.assertEqual(refused.returncode, 1)
            self.assertIn("UNAUTHENTICATED: no bearer token came", refused.stderr)
            self.assertEqual(server.ditctl("budget", "device", "--bytes", "1GiB", "--token-file", token).returncode, 0)
            self.assertEqual(server.budgets("--token-file", token)[0], 1 << 30)
            other = f"tokens: [{{name: a, token: {'x' * 32}, scopes: [admin]}}]\n"
            self.write("new.yaml", other).rename(tokens)
            self.assertIn("is not one of this server's",
                          server.ditctl("budget", "device", "--bytes", "2GiB", "--token-file", token).stderr)

    def test_a_share_is_the_same_budget_at_the_start_and_while_serving(self):
        with Server(self.folder, "--model", f"tiny={self.checkpoint}", "--device-budget", "31%") as server:
            of_the_start = server.budgets()
            self.assertEqual(server.ditctl("budget", "device", "--bytes", "1GiB").returncode, 0)
            self.assertEqual(server.budgets()[0], 1 << 30)
            done = server.ditctl("budget", "device", "--bytes", "31%")
            self.assertEqual(done.returncode, 0, done)
            self.assertEqual(server.budgets(), of_the_start)


if __name__ == "__main__":
    unittest.main()
