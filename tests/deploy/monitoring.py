"""Prometheus, Alertmanager and whom it tells, each on a free port, and load on servers."""

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from programs import Server

PATIENCE_SECONDS = 300


def until(condition: Callable[[], object], what: str) -> None:
    """Asks again and again; gives up only on what hangs."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited for {PATIENCE_SECONDS} s in vain: {what}")
        time.sleep(0.1)


def metrics_port(server: Server) -> int:
    return int(re.search(r"status page on port (\d+)", server.await_log("status page on port"))[1])


class Daemon:
    """One of Prometheus' programs, on a port of its choice."""

    def __init__(self, *command: str | Path):
        self.process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"],
                                        stderr=subprocess.PIPE, text=True)
        said = []
        for line in self.process.stderr:
            said.append(line)
            if listening := re.search(r'msg="Listening on" address=(\S+)', line):
                self.address = f"http://{listening[1]}"
                break
        else:
            raise RuntimeError(f"{command[0]} ended:\n{''.join(said)}")
        self.reader = threading.Thread(target=self.process.stderr.read)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.reader.join()
        self.process.communicate()


class Webhook:
    """Is told of alerts by an Alertmanager; keeps the state of each that it heard of, in order."""

    def __init__(self):
        self.told: list[tuple[str, str, str]] = []  # Alert, instance, "firing" or "resolved".
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                webhook.told += [(alert["labels"]["alertname"], alert["labels"].get("instance", ""), alert["status"])
                                 for alert in body["alerts"]]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def await_told(self, alert: str, instance: str, status: str) -> None:
        """Until that is the last word on the alert."""
        def last() -> str:
            return next((then for name, where, then in reversed(self.told) if (name, where) == (alert, instance)), "")
        until(lambda: last() == status, f"{alert} of {instance} {status}; told so far: {self.told}")


class Load:
    """Runs each of the commands again and again, side by side."""

    def __init__(self, *commands: list):
        self.runs = [0] * len(commands)
        self.lock = threading.Lock()
        self.stopping = False
        self.running: dict[int, subprocess.Popen] = {}
        self.threads = [threading.Thread(target=self._repeat, args=arguments) for arguments in enumerate(commands)]
        for thread in self.threads:
            thread.start()

    def _repeat(self, index: int, command: list) -> None:
        while True:
            with self.lock:
                if self.stopping:
                    return
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                self.running[index] = process
            process.wait()
            self.runs[index] += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        with self.lock:
            self.stopping = True
            for process in self.running.values():
                process.kill()
        for thread in self.threads:
            thread.join()

    def await_runs(self, more: int) -> None:
        """Until each command has run so many times more."""
        goal = [runs + more for runs in self.runs]
        until(lambda: all(runs >= least for runs, least in zip(self.runs, goal)), f"{more} runs of each command")
