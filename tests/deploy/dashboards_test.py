"""The dashboards: that their JSON is what the code makes, and what each panel must have."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from prometheus_api import dashboards, rows

GRAFANA = Path(__file__).resolve().parents[2] / "deploy/grafana"


class DashboardsTest(unittest.TestCase):
    def test_the_json_is_what_the_code_makes(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, GRAFANA / "dashboards.py", folder], check=True)
            made = {file.name: file.read_text() for file in Path(folder).iterdir()}
        kept = {file.name: file.read_text() for file in GRAFANA.glob("*.json")}
        self.assertEqual(sorted(made), ["ditserve-model.json", "ditserve-overview.json"])
        for name, text in made.items():
            self.assertTrue(kept.get(name) == text, f"{name} is not what dashboards.py makes: run it")
        self.assertEqual(sorted(kept), sorted(made))

    def test_grafana_11_reads_them(self):
        for dashboard in dashboards():
            self.assertGreaterEqual(dashboard["schemaVersion"], 38)

    def test_every_panel_tells_how_to_read_it(self):
        for dashboard in dashboards():
            for row, panels in rows(dashboard):
                self.assertTrue(panels, f"row {row} is empty")
                for panel in panels:
                    with self.subTest(dashboard["title"], panel=panel["title"]):
                        self.assertRegex(panel["description"], r"^[A-Z].*\.$")
                        self.assertTrue(panel["fieldConfig"]["defaults"]["unit"])
                        self.assertEqual(panel["datasource"]["uid"], "${datasource}")
                        self.assertTrue(all(target["legendFormat"] for target in panel["targets"]))

    def test_links_lead_from_one_to_the_other(self):
        here = {f"/d/{dashboard['uid']}" for dashboard in dashboards()}
        for dashboard in dashboards():
            (link,) = dashboard["links"]
            self.assertTrue(link["includeVars"] and link["keepTime"])
            self.assertEqual({link["url"], f"/d/{dashboard['uid']}"}, here)


if __name__ == "__main__":
    unittest.main()
