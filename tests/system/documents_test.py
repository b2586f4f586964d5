"""What documents name is there, and what is there they name: alerts, metrics, flags, keys of the configuration."""

import re
import subprocess
import unittest
from functools import cache
from pathlib import Path

from programs import BIN

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^ *```.*?^ *```", re.M | re.S)
INDENTED = re.compile(r"^(?: {4}.*\n)+", re.M)
# A program as a command line calls it, and what follows up to what ends the command.
CALL = re.compile(r"(?<![\w.-])(ditserve|ditctl(?: [a-z][a-z-]*)?)((?: (?:\\\n|[^\n`#|;&])*)?)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def read(path: str) -> str:
    return (ROOT / path).read_text()


def code_of(text: str) -> str:
    """Its blocks, and what stands between backticks, a line each."""
    blocks = FENCED.findall(text)
    rest = FENCED.sub("", text)
    return "\n".join([*blocks, *INDENTED.findall(rest), *re.findall("`([^`]+)`", rest)])


@cache
def flags_of(*command: str) -> set[str]:
    """Those that its --help tells of; none where there is no such command."""
    told = subprocess.run([BIN / command[0], *command[1:], "--help"], capture_output=True, text=True)
    return set(re.findall(r"^ +(?:-h,)?(--[a-z-]+)", told.stdout, re.M)) if told.returncode == 0 else set()


def tables_under_headings(text: str) -> dict[str, list[dict[str, str]]]:
    """The rows of each heading's first table, by its columns."""
    tables: dict[str, list[dict[str, str]]] = {}
    for heading, body in re.findall(r"^#+ ([^\n]*)\n(.*?)(?=^#|\Z)", FENCED.sub("", text), re.M | re.S):
        if table := re.search(r"(?:^\|.*\n)+", body, re.M):
            head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].splitlines()]
            tables[heading] = [dict(zip(head, row)) for row in rows]
    return tables


def words_in(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


class DocumentsTest(unittest.TestCase):
    maxDiff = None

    def assert_same(self, told: set[str], there: set[str], where: str) -> None:
        self.assertEqual(sorted(there - told), [], f"not in {where}")
        self.assertEqual(sorted(told - there), [], f"in {where} alone")

    def test_every_alert_has_its_runbook(self):
        rules = read("deploy/prometheus/rules.yaml")
        alerts = re.findall(r"^ +- alert: (\w+)$", rules, re.M)
        self.assertTrue(alerts)
        self.assert_same(set(re.findall(r"^## (\w+)$", read("docs/runbooks.md"), re.M)), set(alerts), "docs/runbooks.md")
        anchors = re.findall(r"^ +runbook: docs/runbooks.md#(\w+)$", rules, re.M)
        self.assertEqual(anchors, [alert.lower() for alert in alerts])

    def test_every_alert_is_seen_firing_and_resolving(self):
        alerts = set(re.findall(r"^ +- alert: (\w+)$", read("deploy/prometheus/rules.yaml"), re.M))
        resolving = set()
        for series in re.split(r"^  - interval:", read("deploy/prometheus/rules_test.yaml"), flags=re.M):
            firing = set()
            looks = re.findall(r"eval_time: (\d+)([mh]),?\s+alertname: (\w+)(,?\s+exp_alerts:)?", series)
            for _, _, alert, fires in sorted(looks, key=lambda look: int(look[0]) * {"m": 1, "h": 60}[look[1]]):
                if fires:
                    firing.add(alert)
                elif alert in firing:
                    resolving.add(alert)
        self.assert_same(resolving, alerts, "deploy/prometheus/rules_test.yaml as firing, and then no more")

    def test_every_metric_is_in_the_operators_table(self):
        metrics = set(re.findall(r'"ditserve_([a-z_]+)"', read("server/observe/metrics.cc")))
        self.assertIn("gate_refused_total", metrics)
        rows = tables_under_headings(read("docs/operations.md"))["Watch it"]
        told = {re.sub(r"\{.*", "", name) for row in rows for name in words_in(next(iter(row.values())))}
        self.assert_same(told, metrics, "the table of docs/operations.md#watch-it")

    def test_programs_know_every_flag_that_documents_call_them_with(self):
        calls = [(document, call, FLAG.findall(rest)) for document in DOCUMENTS
                 for call, rest in CALL.findall(code_of(document.read_text()))]
        self.assertTrue({"--check", "--known-timestep", "--save-latents"} <= {flag for *_, flags in calls for flag in flags})
        for document, call, flags in calls:
            for flag in flags:
                self.assertIn(flag, flags_of(*call.split()), f"{document.relative_to(ROOT)} has {call} {flag}")

    def test_every_flag_of_the_server_is_in_the_table_of_flags(self):
        rows = tables_under_headings(read("docs/configuration.md"))["Flags"]
        told = {flag for row in rows for flag in FLAG.findall(row["flag"])}
        self.assert_same(told, flags_of("ditserve"), "the table of docs/configuration.md#flags")

    def test_every_key_of_the_configuration_is_in_the_table_of_its_section(self):
        # The reader of a section is named after it, but those of what may be there several times.
        named = {"models": "model", "Profiles": "profile"}
        bodies = re.findall(r"^absl::Status Read(\w+)\((?:const std::string& name, )?YamlMap& map, ServerConfig& config\) "
                            r"(.*?)^\}", read("server/config/config.cc"), re.M | re.S)
        there = {f"{section.lower()}.{key}" for section, body in bodies
                 for key in re.findall(r'(?:\bRead\w+\((?:map, )?|std::pair\()"(\w+)"', body)}
        told = {f"{named.get(section, section)}.{key}"
                for section, rows in tables_under_headings(read("docs/configuration.md")).items()
                for row in rows for key in words_in(row.get("key", ""))}
        self.assertIn("listen.max_connections", there)
        self.assert_same(told, there, "the tables of docs/configuration.md")

    def test_the_defaults_that_are_told_are_those_of_the_shipped_file(self):
        there, section = {}, ""
        for indent, key, value in re.findall(r"^(  )?(\w+): *(.*)$", read("config/ditserve.yaml"), re.M):
            if indent:
                there[section, key] = value
            else:
                section = key
        told = {(section, key): row["default"].strip("`")
                for section, rows in tables_under_headings(read("docs/configuration.md")).items()
                for row in rows for key in words_in(row.get("key", "")) if (section, key) in there}
        self.assertIn(("listen", "address"), told)
        wrong = {place: default for place, default in told.items() if default != there[place]}
        self.assertEqual(wrong, {}, "docs/configuration.md tells other defaults than config/ditserve.yaml")


if __name__ == "__main__":
    unittest.main()
