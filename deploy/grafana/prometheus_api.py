"""What Grafana asks of Prometheus when it shows a dashboard: variables filled in, over Prometheus' HTTP API."""

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

# As Grafana makes it for a scrape every 15 seconds.
DEFAULTS = {"__rate_interval": "1m", "namespace": ".*", "instance": ".*"}


def dashboards(folder: Path = Path(__file__).parent) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("ditserve-*.json"))]


def rows(dashboard: dict) -> Iterator[tuple[str, list[dict]]]:
    """Title and panels of each row."""
    panels = dashboard["panels"]
    starts = [i for i, panel in enumerate(panels) if panel["type"] == "row"] + [len(panels)]
    for start, end in zip(starts, starts[1:]):
        yield panels[start]["title"], panels[start + 1:end]


def fill_in(query: str, variables: dict[str, str]) -> str:
    values = DEFAULTS | variables
    return re.sub(r"\$(\w+)", lambda name: values[name[1]], query)


class PrometheusApi:
    """Answers of one Prometheus. Errors: urllib's, with what Prometheus says as the reason."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")

    def ask(self, path: str, **parameters: str | float) -> dict | list:
        # Some names of parameters end in brackets: match[].
        query = urllib.parse.urlencode({name.replace("__", "[]"): value for name, value in parameters.items()})
        try:
            with urllib.request.urlopen(f"{self.address}/api/v1/{path}?{query}") as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            error.msg += ": " + error.read().decode()
            raise

    def now(self, query: str) -> list[dict]:
        return self.ask("query", query=query)["result"]

    def range(self, query: str, start: float, end: float, step: float) -> list[dict]:
        return self.ask("query_range", query=query, start=start, end=end, step=step)["result"]

    def values(self, label: str, series: str) -> list[str]:
        return self.ask(f"label/{label}/values", match__=series)
