"""Draws rows of a dashboard from what Prometheus answers to their queries, for where no Grafana is.

draw.py PROMETHEUS UID OUT.png [VARIABLE=VALUE]... [--row TITLE]... [--minutes M]
"""

import argparse
import math
import re
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image

from prometheus_api import PrometheusApi, dashboards, fill_in, rows

POINTS = 240
UNITS = ["B", "KiB", "MiB", "GiB", "TiB"]
INCHES_A_COLUMN, INCHES_A_LINE = 0.5, 0.31
Series = dict[str, list[float]]  # By legend: a value a step, NaN where there is none.


def shown(value: float, unit: str) -> str:
    """The value as Grafana writes it in that unit."""
    if math.isnan(value):
        return "none"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit in ("bytes", "binBps"):
        power = min(4, int(math.log(value, 1024))) if value >= 1 else 0
        return f"{value / 1024 ** power:.3g} {UNITS[power]}" + ("/s" if unit == "binBps" else "")
    if unit == "s" and 0 < value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g}" + {"s": " s", "reqps": " /s", "ops": " /s"}.get(unit, "")


class Picture:
    def __init__(self, prometheus: PrometheusApi, variables: dict[str, str], minutes: float):
        self.prometheus, self.variables = prometheus, variables
        self.end = time.time()
        self.start = self.end - 60 * minutes
        self.step = max(1, round(60 * minutes / POINTS))
        self.minutes = [(i * self.step - (self.end - self.start)) / 60 for i in range(self._index(self.end) + 1)]

    def _index(self, moment: float) -> int:
        return round((moment - self.start) / self.step)

    def series(self, panel: dict) -> Series:
        found: Series = {}
        for target in panel["targets"]:
            query = fill_in(target["expr"], self.variables)
            for one in self.prometheus.range(query, self.start, self.end, self.step):
                name = re.sub(r"{{(\w+)}}", lambda label: one["metric"].get(label[1], ""), target["legendFormat"])
                values = [math.nan] * len(self.minutes)
                for moment, value in one["values"]:
                    values[self._index(moment)] = float(value)
                found[name] = values
        return found

    def draw(self, panel: dict, axes: Axes) -> None:
        axes.set_title(panel["title"], loc="left", fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_formatter("{x:g} min")
        {"stat": self.number, "timeseries": self.curves, "heatmap": self.heat}[panel["type"]](panel, axes)

    def number(self, panel: dict, axes: Axes) -> None:
        axes.axis("off")
        unit = panel["fieldConfig"]["defaults"]["unit"]
        last = {name: next((v for v in reversed(values) if not math.isnan(v)), math.nan)
                for name, values in self.series(panel).items()}
        text = "   ".join(f"{shown(value, unit)} {name}" if len(last) > 1 else shown(value, unit)
                          for name, value in last.items())
        axes.text(0, 0.45, text or "none", fontsize=15 if len(last) < 2 else 11, transform=axes.transAxes, va="center")

    def curves(self, panel: dict, axes: Axes) -> None:
        options = panel["fieldConfig"]
        properties = {one["matcher"]["options"]: {p["id"]: p["value"] for p in one["properties"]}
                      for one in options["overrides"]}
        series = self.series(panel)
        limits = [name for name in series if "custom.stacking" in properties.get(name, {})]
        if "stacking" in options["defaults"]["custom"]:
            layers = [name for name in properties if name in series and name not in limits]
            colors = [properties[name]["color"]["fixedColor"] for name in layers]
            axes.stackplot(self.minutes, [series[name] for name in layers], labels=layers, colors=colors, alpha=0.75)
            for name, color, style in zip(limits, ("black", "gray"), ("-", "--")):
                axes.plot(self.minutes, series[name], label=name, color=color, linestyle=style, linewidth=1.2)
        else:
            for name, values in series.items():
                axes.plot(self.minutes, values, label=name, linewidth=1.1)
        axes.set_ylim(bottom=0)
        axes.set_xlim(self.minutes[0], 0)
        unit = options["defaults"]["unit"]
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
        in_bytes = unit in ("bytes", "binBps")
        step = 2 ** math.ceil(math.log2(axes.get_ylim()[1] / 5))
        axes.yaxis.set_major_locator(MultipleLocator(step) if in_bytes else MaxNLocator(5))
        axes.grid(alpha=0.25)
        if series:
            axes.legend(fontsize=6.5, ncols=5, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.1))

    def heat(self, panel: dict, axes: Axes) -> None:
        up_to = {float(name): values for name, values in self.series(panel).items()}  # How many took no longer.
        bounds = sorted(up_to)
        below = [[0.0] * len(self.minutes)] + [up_to[bound] for bound in bounds]
        cells = [[0 if math.isnan(more - less) else max(0, more - less) for less, more in zip(below[i], up_to[bound])]
                 for i, bound in enumerate(bounds)]
        drawn = [i for i, row in enumerate(cells) if any(row)] or [0]
        first, last = drawn[0], drawn[-1] + 1
        axes.pcolormesh(self.minutes, range(last - first), cells[first:last], cmap="Blues", norm=PowerNorm(0.5),
                        shading="nearest")
        axes.set_yticks(range(last - first), ["to " + shown(bound, "s") for bound in bounds[first:last]])


def draw(picture: Picture, uid: str, only: list[str], out: Path) -> None:
    (dashboard,) = [one for one in dashboards() if one["uid"] == uid]
    panels = [panel for title, of_row in rows(dashboard) if not only or title in only for panel in of_row]
    lines = sorted({panel["gridPos"]["y"]: panel["gridPos"]["h"] for panel in panels}.items())
    tops, height = {}, 0
    for y, h in lines:
        tops[y] = height
        height += h
    figure = plt.figure(figsize=(24 * INCHES_A_COLUMN, height * INCHES_A_LINE), dpi=100)
    for panel in panels:
        at = panel["gridPos"]
        axes = figure.add_axes(((at["x"] + 1.5) / 24, 1 - (tops[at["y"]] + at["h"] - 1.8) / height,
                                (at["w"] - 2) / 24, (at["h"] - 2.8) / height))
        picture.draw(panel, axes)
    figure.savefig(out)
    Image.open(out).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=192).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="its address: http://127.0.0.1:9090")
    parser.add_argument("uid", help="ditserve-overview or ditserve-model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--row", action="append", default=[], help="a row's title; all rows by default")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("variables", nargs="*", metavar="VARIABLE=VALUE")
    options = parser.parse_intermixed_args()
    variables = dict(one.split("=", 1) for one in options.variables)
    picture = Picture(PrometheusApi(options.prometheus), variables, options.minutes)
    draw(picture, options.uid, options.row, options.out)


if __name__ == "__main__":
    main()
