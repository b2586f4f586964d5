"""The status page of a server under load, in a real browser: what it draws is what it was told, at any width, light or
dark, and it asks nobody else."""

import tempfile
import unittest
from pathlib import Path

from PIL import Image

from browser import Element, Relay, Shown, show
from monitoring import Load, metrics_port
from programs import Server, tiny_checkpoint

WEIGHTS = {False: (0x2F, 0x6F, 0xDB), True: (0x5B, 0x93, 0xF5)}
GROUND = {False: (0xF6, 0xF7, 0xF9), True: (0x11, 0x14, 0x18)}


def in_units(count: float) -> str:
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    power = 0
    while count >= 1023.95 and power + 1 < len(units):
        count, power = count / 1024, power + 1
    return f"{count:.1f} {units[power]}" if power else f"{count:.0f} B"


def row_of_rider(rider: dict) -> tuple[str, str]:
    name = ", ".join([rider["model"], rider["profile"] or "(inline)", rider["device"]] + ["batch"] * (rider["priority"] == "batch"))
    place = ("waits for the next sweep" if rider["awaits_sweep"]
             else f"module {rider['modules_done']} of {rider['modules_total']}")
    return name, place


def heads(section: Element) -> list[tuple[str, str]]:
    return [(head.all("b")[0].text, head.all("span")[0].text) for head in section.all("div", "head")]


def widths(bar: Element) -> list[float]:
    return [float(part.attributes["style"].removeprefix("width: ").removesuffix("%;")) for part in bar.all("i")]


class StatusPageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        tiny_checkpoint(cls.folder / "tiny")
        cls.server = cls.enterClassContext(Server(
            cls.folder, "--model", f"tiny={cls.folder}/tiny", "--metrics-listen", "127.0.0.1:0"))
        # Each takes seconds, so that some ride whenever one looks.
        sizes = ("--height", "2048", "--width", "2048", "--batch", "4")
        cls.enterClassContext(Load(*[
            cls.server.command("forward", *sizes, "--profile", *profile)
            for profile in (["disk"], ["resident"], ["dynamic", "--priority", "batch"])]))

    def shown(self, width: int, dark: bool) -> tuple[Shown, dict, Path]:
        """The page while somebody rides, what it was told, and its picture."""
        picture = self.folder / f"{width}-{dark}.png"
        while True:
            with Relay(metrics_port(self.server)) as relay:
                shown = show(relay.address, self.folder, width, dark, picture)
            self.assertEqual(shown.complaints, [])
            self.assertEqual({url.removeprefix(relay.address) for url in shown.requests} - {"favicon.ico"},
                             {"", "status.json"})
            self.assertLessEqual(set(relay.paths), {"/", "/status.json", "/favicon.ico"})
            told = relay.told[int(shown.dom.all("html")[0].attributes["data-drawn"]) - 1]
            if told["riders"]:
                return shown, told, picture

    def test_it_shows_what_it_was_told(self):
        for width in (500, 1400):
            for dark in (False, True):
                with self.subTest(width=width, dark=dark):
                    shown, told, picture = self.shown(width, dark)
                    self.check_memories(shown.dom.by_id("memories"), told["memories"])
                    self.check_models(shown.dom.by_id("models"), told["models"])
                    self.check_riders(shown.dom.by_id("requests"), told)
                    self.check_transfers(shown.dom.by_id("transfers"), told["transfers"])
                    self.assertEqual(shown.dom.by_id("version").text, told["version"])
                    self.assertEqual(shown.dom.by_id("lost").text, "")
                    self.assertEqual(shown.dom.all("html")[0].attributes["data-overflow"], "0", "wider than the window")
                    self.check_picture(picture, width, dark)

    def check_memories(self, section: Element, memories: list[dict]) -> None:
        expected = []
        for memory, bar in zip(memories, section.all("div", "bar"), strict=True):
            parts = [memory[f"{kind}_bytes"] for kind in ("weights", "staging", "activations", "modulation", "runtime")]
            self.assertLessEqual(sum(parts), memory["budget_bytes"])
            self.assertLessEqual(sum(parts), memory["peak_bytes"])
            expected.append((memory["name"], f"{in_units(sum(parts))} of {in_units(memory['budget_bytes'])}"))
            self.check_bar(bar, parts, memory["budget_bytes"])
        self.assertEqual(heads(section), expected)

    def check_models(self, section: Element, models: list[dict]) -> None:
        (model,) = models
        parts = [model[f"{tier}_bytes"] for tier in ("device", "host", "disk")]
        here = round(100 * (sum(parts) - parts[2]) / sum(parts))
        self.assertEqual(heads(section), [("tiny", f"{here} % of {in_units(sum(parts))} in memory")])
        self.check_bar(section.all("div", "bar")[0], parts, sum(parts))

    def check_riders(self, section: Element, told: dict) -> None:
        riders = told["riders"]
        self.assertEqual([(name, text.split(", stalled")[0]) for name, text in heads(section)],
                         [row_of_rider(rider) for rider in riders])
        for rider, bar in zip(riders, section.all("div", "bar"), strict=True):
            self.assertLessEqual(rider["modules_done"], rider["modules_total"])
            self.check_bar(bar, [rider["modules_done"]], rider["modules_total"])
        riding = sum(not rider["awaits_sweep"] for rider in riders)
        figures = [int(figure.all("b")[0].text) for figure in section.all("div", "figures")[0].all("div")]
        self.assertEqual(figures, [riding, len(riders) - riding, told["requests_waiting"]])

    def check_transfers(self, section: Element, transfers: list[dict]) -> None:
        rows = heads(section)
        self.assertEqual([name for name, _ in rows], [f"{one['from']} to {one['to']}" for one in transfers])
        for one, (_, text) in zip(transfers, rows):
            self.assertTrue(text.endswith(f", {in_units(one['bytes'])} in all"), text)
        self.assertEqual(len(section.all("path")), len(transfers), "a curve each, after two answers")

    def check_bar(self, bar: Element, parts: list[int], whole: int) -> None:
        drawn = widths(bar)
        self.assertEqual(len(drawn), len(parts))
        for width, value in zip(drawn, parts):
            self.assertAlmostEqual(width, 100 * value / whole, places=2)

    def check_picture(self, picture: Path, width: int, dark: bool) -> None:
        with Image.open(picture) as image:
            self.assertEqual(image.width, width)
            colors = {color: count for count, color in image.convert("RGB").getcolors(1 << 24)}
        self.assertGreater(colors.get(GROUND[dark], 0), 1000, "no ground is drawn")
        self.assertGreater(colors.get(WEIGHTS[dark], 0), 100, "no bar is drawn")
        self.assertGreater(len(colors), 50, "no text is drawn")


if __name__ == "__main__":
    unittest.main()
