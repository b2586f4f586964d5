"""A real Prometheus and Alertmanager watch two servers under load, by the shipped configuration and rules.

One server has Kubernetes' label namespace, the other none. In the rules minutes are made seconds, so that alerts fire
and resolve while one looks; the configuration scrapes each second.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import unittest
import urllib.request
from pathlib import Path

from PIL import Image

from envoy_front import Authority
from monitoring import Daemon, Load, Webhook, metrics_port, until
from programs import Server, tiny_checkpoint
from prometheus_api import PrometheusApi, dashboards, fill_in, rows

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SHIPPED, DRAW = DEPLOY / "prometheus", DEPLOY / "grafana/draw.py"
INLINE = '{"offload_dtype": "bfloat16", "offload_device": "cpu", "computation_dtype": "bfloat16"}'
ALERTMANAGER = """
route: {{receiver: test, group_by: [...], group_wait: 0s, group_interval: 1s}}
receivers: [{{name: test, webhook_configs: [{{url: '{url}', send_resolved: true}}]}}]
"""


def in_seconds(rules: str) -> str:
    """The rules with each minute of a `for:` or a range made a second, and each hour a minute."""
    return re.sub(r"(?<=for: )(\d+)([mh])|(?<=\[)(\d+)([mh])(?=\])",
                  lambda found: (found[1] or found[3]) + {"m": "s", "h": "m"}[found[2] or found[4]], rules)


def configuration(alertmanager: str, with_namespace: int, without: int) -> str:
    text = (SHIPPED / "prometheus.yaml").read_text()
    for shipped, here in (
            ("interval: 15s", "interval: 1s"), ("127.0.0.1:9093", alertmanager.removeprefix("http://")),
            ("- targets: ['127.0.0.1:9464']", f"- targets: ['127.0.0.1:{without}']\n      - targets:"
             f" ['127.0.0.1:{with_namespace}']\n        labels: {{namespace: images}}")):
        if shipped not in text:
            raise ValueError(f"prometheus.yaml has no '{shipped}'")
        text = text.replace(shipped, here)
    return text


class PrometheusTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        enter = cls.enterClassContext
        cls.folder = Path(enter(tempfile.TemporaryDirectory()))
        authority = Authority(cls.folder / "authority")
        cls.ca, cls.certificate = authority.folder / "ca.crt", authority.certificate("localhost")
        # One request at a time, and nobody waits: most of those that come at once are refused.
        cls.full = enter(cls.serve("full", "requests: {max_active: 1, max_queue: 0}"))
        cls.killed = enter(contextlib.ExitStack())
        cls.other = cls.killed.enter_context(cls.serve("other"))
        cls.full_port, cls.other_port = metrics_port(cls.full), metrics_port(cls.other)
        cls.webhook = enter(Webhook())
        (cls.folder / "alertmanager.yaml").write_text(ALERTMANAGER.format(url=cls.webhook.address))
        alertmanager = enter(Daemon("prometheus-alertmanager", f"--config.file={cls.folder}/alertmanager.yaml",
                                    f"--storage.path={cls.folder}/alertmanager", "--cluster.listen-address="))
        (cls.folder / "rules.yaml").write_text(in_seconds((SHIPPED / "rules.yaml").read_text()))
        (cls.folder / "prometheus.yaml").write_text(
            configuration(alertmanager.address, cls.full_port, cls.other_port))
        prometheus = enter(Daemon("prometheus", f"--config.file={cls.folder}/prometheus.yaml",
                                  f"--storage.tsdb.path={cls.folder}/tsdb"))
        cls.prometheus = PrometheusApi(prometheus.address)

        cls.load_on_full = enter(Load(*[cls.forward(cls.full, "--profile", "dynamic")] * 3, cls.denoise(cls.full)))
        cls.load_on_other = enter(Load(*[
            cls.forward(cls.other, *profile)
            for profile in (("--profile", "disk"), ("--profile", "resident"), ("--vram-config", INLINE),
                            ("--profile", "of-nobody"))], cls.denoise(cls.other)))
        cls.load_on_full.await_runs(5)
        cls.load_on_other.await_runs(5)
        cls.await_scrapes(5)
        # Of what the full server is asked for most is refused.
        loops = 'rate(ditserve_forward_duration_seconds_count{namespace="images",rpc="Denoise"}[1m]) > 0'
        until(lambda: cls.prometheus.now(loops), "loops that are answered")

    @classmethod
    def serve(cls, name: str, settings: str = "", metrics: str = "127.0.0.1:0") -> Server:
        folder = cls.folder / name
        if not folder.exists():
            folder.mkdir()
            tiny_checkpoint(folder / "tiny")
        (folder / "server.yaml").write_text(
            f"{settings}\ntls: {{certificate: {cls.certificate}/tls.crt, private_key: {cls.certificate}/tls.key}}\n")
        return Server(folder, "--config", folder / "server.yaml", "--model", f"tiny={folder}/tiny",
                      "--metrics-listen", metrics)

    @classmethod
    def forward(cls, server: Server, *arguments: str) -> list:
        return server.command("forward", "--ca", cls.ca, "--height", "256", "--width", "256", *arguments)

    @classmethod
    def denoise(cls, server: Server) -> list:
        return server.command("denoise", "--ca", cls.ca, "--height", "256", "--width", "256", "--steps", "2",
                              "--profile", "disk")

    @classmethod
    def await_scrapes(cls, count: int) -> None:
        """Until both servers have been scraped so many times more."""
        for _ in range(count):
            def last() -> dict:
                targets = cls.prometheus.ask("targets", state="active")["activeTargets"]
                return {target["scrapeUrl"]: target["lastScrape"] for target in targets}
            before = {}
            until(lambda: len(before.update(last()) or before) == 2, "two targets")
            until(lambda: all(before[url] != then for url, then in last().items()), "a scrape of each server")

    def test_1_every_query_of_every_panel_is_answered(self):
        for variables in ({}, {"namespace": "images"}, {"instance": f"127.0.0.1:{self.other_port}"}):
            for dashboard in dashboards():
                for _, panels in rows(dashboard):
                    for panel in panels:
                        for target in panel["targets"]:
                            where = (dashboard["title"], panel["title"], target["legendFormat"], variables)
                            with self.subTest(where):
                                self.check(target, variables | {"model": "tiny"})

    def check(self, target: dict, variables: dict[str, str]) -> None:
        series = self.prometheus.now(fill_in(target["expr"], variables))
        self.assertTrue(series, f"no data: {target['expr']}")
        self.assertTrue(any(one["value"][1] != "NaN" for one in series), f"only NaN: {target['expr']}")
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            self.assertTrue(all(one["metric"].get(label) for one in series), f"no {label} for the legend")

    def test_1_every_variable_has_values(self):
        expected = {"namespace": ["images"], "model": ["tiny"],
                    "instance": sorted(f"127.0.0.1:{port}" for port in (self.full_port, self.other_port))}
        for dashboard in dashboards():
            for variable in dashboard["templating"]["list"]:
                if variable["type"] == "query":
                    with self.subTest(dashboard["title"], variable=variable["name"]):
                        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()
                        self.assertEqual(self.prometheus.values(label, fill_in(series, {})), expected[label])

    def test_1_dashboards_can_be_drawn(self):
        for uid in ("ditserve-overview", "ditserve-model"):
            drawn = self.folder / f"{uid}.png"
            subprocess.run([sys.executable, DRAW, self.prometheus.address, uid, drawn, "model=tiny", "--minutes=1"],
                           check=True)
            with Image.open(drawn) as image:
                colors = {color for count, color in image.convert("RGB").getcolors(1 << 24) if count > 500}
            self.assertGreater(len(colors), 5, f"{uid}: nothing is drawn")

    def test_1_promtool_finds_nothing(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.other_port}/metrics") as answer:
            metrics = answer.read()
        for command, said in (("check config prometheus.yaml", b""), ("test rules rules_test.yaml", b""),
                              ("check metrics", metrics)):
            done = subprocess.run(["promtool", *command.split()], cwd=SHIPPED, input=said, capture_output=True)
            self.assertEqual((done.returncode, done.stderr), (0, b""), f"promtool {command}: {done.stdout}")

    def test_2_alerts_fire_and_resolve(self):
        full, other = f"127.0.0.1:{self.full_port}", f"127.0.0.1:{self.other_port}"
        told = self.webhook.await_told

        told("DitserveRefusesRequests", full, "firing")
        self.load_on_full.stop()
        told("DitserveRefusesRequests", full, "resolved")

        self.load_on_other.stop()
        self.killed.close()
        told("DitserveDown", other, "firing")
        again = self.enterContext(self.serve("other", metrics=other))
        told("DitserveDown", other, "resolved")

        for shard in (self.folder / "other/tiny").glob("*.safetensors"):
            os.truncate(shard, shard.stat().st_size // 2)
        with Load(self.forward(again, "--profile", "disk")):
            told("DitserveCheckpointDamaged", other, "firing")
            told("DitserveFaults", other, "firing")
        told("DitserveCheckpointDamaged", other, "resolved")
        told("DitserveFaults", other, "resolved")


if __name__ == "__main__":
    unittest.main()
