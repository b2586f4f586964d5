"""The Grafana dashboards, as code: `python dashboards.py` writes their JSON beside this file.

Every query works with Kubernetes' labels and on a plain scrape without them: All is the pattern ".*", which a label
that is not there matches too.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, StackingConfig, VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import (BigValueColorMode, BigValueGraphMode, LegendDisplayMode,
                                                  LegendPlacement, StackingMode)
from grafana_foundation_sdk.models.dashboard import (DashboardCursorSync, DashboardLinkType, DataSourceRef,
                                                     DynamicConfigValue, Threshold, ThresholdsMode, VariableOption,
                                                     VariableRefresh, VariableSort)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
SERVERS = 'namespace=~"$namespace",instance=~"$instance"'
BY_SERVER = "sum by (namespace, instance)"
BY_DEVICE = "sum by (namespace, instance, device)"

ANSWERED = 'code="OK"'
NOT_ANSWERED = 'code!="OK"'
REFUSED = 'code="RESOURCE_EXHAUSTED"'
FAULTS = 'code=~"INTERNAL|UNKNOWN|DATA_LOSS"'
UNANSWERED = 'code=~"UNAVAILABLE|DEADLINE_EXCEEDED"'
PASSES = 'rpc!="Denoise"'
LOOPS = 'rpc="Denoise"'

# As on the status page.
KINDS = {"weights": "#2f6fdb", "staging": "#e0912a", "activations": "#2a9d78", "modulation": "#b8568f", "runtime": "#8b8378"}
TIERS = {"device": "#2f6fdb", "host": "#8a63c9", "disk": "#b3bac4"}
STAGES = {"compute": "#2a9d78", "stall": "#e0912a", "queue": "#b3bac4"}

Panel = stat.Panel | timeseries.Panel | heatmap.Panel
Queries = dict[str, str]  # By legend.


@dataclass(frozen=True)
class Scope:
    """Which series a dashboard looks at."""
    matchers: str

    def of(self, metric: str, *more: str) -> str:
        return f"ditserve_{metric}{{{','.join((*more, self.matchers))}}}"

    def rate(self, metric: str, *more: str) -> str:
        return f"rate({self.of(metric, *more)}[$__rate_interval])"

    def quantile(self, share: float, metric: str, calls: str, *by: str) -> str:
        rate = self.rate(metric + "_bucket", calls)
        return f"histogram_quantile({share}, sum by ({', '.join((*by, 'le'))}) ({rate}))"

    def ended(self, code: str, total: str) -> str:
        return part(self.rate("requests_total", code), self.rate("requests_total"), total)

    def stalled(self, total: str) -> str:
        stall = self.rate("stage_duration_seconds_sum", 'stage="stall"')
        return part(stall, self.rate("forward_duration_seconds_sum"), total)


ALL = Scope(SERVERS)
ONE_MODEL = Scope(SERVERS + ',model="$model"')


def part(some: str, whole: str, total: str = "sum") -> str:
    """The share that is `some`; nothing, not NaN, where there is nothing to share."""
    return f"{total} ({some}) / ({total} ({whole}) > 0)"


def fill(panel: Panel, title: str, description: str, queries: Queries, unit: str, span: int, height: int,
         form: PromQueryFormat = PromQueryFormat.TIME_SERIES) -> Panel:
    panel.title(title).description(description).datasource(SOURCE).unit(unit).span(span).height(height)
    for letter, (legend, query) in zip("ABCDEF", queries.items()):
        panel.with_target(
            prometheus.Dataquery().ref_id(letter).expr(query).legend_format(legend).format(form).range())
    return panel


def number(title: str, description: str, queries: Queries, unit: str = units.Short,
           bad_from: float | None = None) -> Panel:
    """The last value, large; red from `bad_from` on."""
    steps = [Threshold(value=None, color="text" if bad_from is None else "green")]
    if bad_from is not None:
        steps.append(Threshold(value=bad_from, color="red"))
    return (fill(stat.Panel(), title, description, queries, unit, span=4, height=5)
            .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)).no_value("none")
            .reduce_options(ReduceDataOptions().calcs(["lastNotNull"])).color_mode(BigValueColorMode.VALUE)
            .graph_mode(BigValueGraphMode.AREA))


def curves(title: str, description: str, queries: Queries, unit: str, span: int = 12) -> timeseries.Panel:
    legend = (VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
              .placement(LegendPlacement.BOTTOM))
    return (fill(timeseries.Panel(), title, description, queries, unit, span, height=8)
            .min(0).line_width(1).fill_opacity(8).legend(legend))


def stacked(panel: timeseries.Panel, colors: dict[str, str], limits: tuple[str, ...] = ()) -> Panel:
    """Values that add up. `limits` do not: they are lines."""
    panel.fill_opacity(35).stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    for name, color in colors.items():
        panel.override_by_name(name, [DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})])
    for name in limits:
        panel.override_by_name(name, [DynamicConfigValue("custom.stacking", {"mode": "none"}),
                                      DynamicConfigValue("custom.fillOpacity", 0),
                                      DynamicConfigValue("custom.lineWidth", 2)])
    return panel


def memory(name: str) -> Panel:
    one = f'memory="{name}"'
    limits = {"budget in force": "memory_budget_bytes", "budget asked for": "memory_wanted_budget_bytes"}
    queries = {"{{kind}}": f"sum by (kind) ({ALL.of('memory_bytes', one)})"}
    queries |= {legend: f"sum ({ALL.of(metric, one)})" for legend, metric in limits.items()}
    panel = curves(
        f"{name.capitalize()} memory against its budget",
        "What is reserved, by what it is for; the lines are the budget in force and the one that was asked for. Where"
        " the lines part, other processes need the memory.",
        queries, units.BytesIEC)
    return stacked(panel, KINDS, tuple(limits))


def parts_of_budgets(held: str, budget: str) -> Queries:
    """By memory: each device's by its name, and the host's."""
    def parts(name: str, total: str) -> str:
        one = f'memory="{name}"'
        return part(ALL.of(held, one), ALL.of(budget, one), total)
    return {"{{instance}} {{device}}": parts("device", BY_DEVICE),
            "{{instance}} host": parts("host", BY_SERVER)}


def tiers(scope: Scope) -> Panel:
    panel = curves(
        "Weights by the nearest tier that holds them",
        "The three add up to the parameters. What lies on disk alone must be read for each sweep; what is on the device"
        " costs nothing.",
        {"{{tier}}": f"sum by (tier) ({scope.of('weights_bytes')})"}, units.BytesIEC)
    return stacked(panel, TIERS)


def stages(scope: Scope) -> Panel:
    panel = curves(
        "Where time goes",
        "Seconds that answered requests spent on each stage, for each second: 3 on compute means that three computed at a"
        " time. Much stall asks for memory or faster disks, much queue for more servers.",
        {"{{stage}}": f"sum by (stage) ({scope.rate('stage_duration_seconds_sum')})"}, units.Short)
    return stacked(panel, STAGES)


def stalls(scope: Scope, span: int = 12) -> Panel:
    return curves(
        "Stalled, by server",
        "Share of their time that answered requests waited for weights. Above one half DitserveStalls fires.",
        {"{{instance}}": scope.stalled(BY_SERVER)}, units.PercentUnit, span)


def latency(scope: Scope, share: float, name: str) -> Panel:
    return curves(
        f"Duration by profile, {name}",
        f"No more than this took {share:.0%} of the answered passes, from arrival to response. Compare profiles at"
        " equal sizes of images: a larger one takes longer under any.",
        {"{{profile}}": scope.quantile(share, "forward_duration_seconds", PASSES, "profile")}, units.Seconds)


def loops(scope: Scope, span: int = 12) -> Panel:
    return curves(
        "Duration of denoising loops",
        "Half of the answered loops took no more than the median, and all but one of a hundred no more than the other, from"
        " arrival to response.",
        {"median {{profile}}": scope.quantile(0.5, "forward_duration_seconds", LOOPS, "profile"),
         "99 of 100 {{profile}}": scope.quantile(0.99, "forward_duration_seconds", LOOPS, "profile")},
        units.Seconds, span)


def steps(scope: Scope, span: int = 12) -> Panel:
    return curves(
        "Seconds a step",
        "What answered denoising loops took, from arrival to response, by the steps that they made. Compare it with a"
        " pass of the same size: a loop waits for admission once, and step caches skip steps.",
        {"{{instance}}": part(scope.rate("forward_duration_seconds_sum", LOOPS), scope.rate("denoise_steps_total"),
                              BY_SERVER)}, units.Seconds, span)


def durations(scope: Scope) -> Panel:
    query = f"sum by (le) (increase({scope.of('forward_duration_seconds_bucket', PASSES)}[$__rate_interval]))"
    panel = fill(
        heatmap.Panel(), "How long passes take",
        "A column is a moment, a row a range of durations: the darker, the more passes took that long. Two bands are"
        " two sizes or profiles; one that rises is a queue or a stall.",
        {"{{le}}": query}, units.Short, span=12, height=8, form=PromQueryFormat.HEATMAP)
    return (panel.calculate(False).y_axis(heatmap.YAxisConfig().unit(units.Seconds))
            .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32)))


def errors(scope: Scope, span: int = 12) -> Panel:
    return curves(
        "Requests without an answer, by code",
        "Those that ended by an error, each second. RESOURCE_EXHAUSTED: the server was full; INVALID_ARGUMENT and"
        " NOT_FOUND: the clients' own; UNAVAILABLE: the disk fails, or the server stops; DEADLINE_EXCEEDED: later than"
        " the client waits; INTERNAL, UNKNOWN and DATA_LOSS: faults of the server or its files.",
        {"{{code}}": f"sum by (code) ({scope.rate('requests_total', NOT_ANSWERED)})"}, units.RequestsPerSecond, span)


def answered(scope: Scope) -> Panel:
    return number(
        "Answered", "Passes and denoising loops that were answered, each second, over all servers.",
        {"answered": f"sum ({scope.rate('requests_total', ANSWERED)})"}, units.RequestsPerSecond)


def passes_by_model() -> Panel:
    link = dashboard.DashboardLink("this model").url(
        "/d/ditserve-model?var-model=${__field.labels.model}&${datasource:queryparam}&${namespace:queryparam}"
        "&${instance:queryparam}&${__url_time_range}")
    return curves(
        "Answered, by model",
        "Passes and denoising loops, each second. A click on a curve leads to its model's dashboard.",
        {"{{model}}": f"sum by (model) ({ALL.rate('requests_total', ANSWERED)})"}, units.RequestsPerSecond,
        span=6).data_links([link])


def overview() -> dashboard.Dashboard:
    up = f'up{{job="ditserve",{SERVERS}}}'
    alerts = f'ALERTS{{alertname=~"Ditserve.+",alertstate="firing",{SERVERS}}}'
    rows = {
        "Now": [
            number("Servers", "How many answer Prometheus, of those that it knows.",
                   {"answer": f"sum ({up})", "known": f"count ({up})"}),
            number("Alerts", "Alerts of deploy/prometheus/rules.yaml that fire now; docs/runbooks.md tells what to do.",
                   {"fire": f"count ({alerts}) or vector(0)"}, bad_from=1),
            number("Riders", "Requests in a sweep now: all riders of a model share one pass over its weights.",
                   {"ride": f"sum ({ALL.of('sweep_riders')})"}),
            number("Queue", "Requests that wait for admission or for the next sweep.",
                   {"wait": f"sum ({ALL.of('requests_waiting')})"}),
            answered(ALL),
            number("Faults", "Share of the requests that ended by a fault of the server or its files. Above 1 %"
                   " DitserveFaults fires.",
                   {"faults": ALL.ended(FAULTS, "sum")}, units.PercentUnit, bad_from=0.01),
        ],
        "Memory": [
            memory("device"),
            memory("host"),
            tiers(ALL),
            curves("Share of the budget in use, by server",
                   "What is reserved, of the budget in force; never above 100 %. A device that is nearly full is not in"
                   " need: memory that is left over keeps weights.",
                   parts_of_budgets("memory_bytes", "memory_budget_bytes"), units.PercentUnit),
            curves("Other processes on the device",
                   "Device memory that other processes hold: the neighbours on a shared device. On the device cpu it is"
                   " what everything else in the machine holds.",
                   {"{{instance}} {{device}}": ALL.of("device_other_processes_bytes")}, units.BytesIEC, span=6),
            curves("Most that was held",
                   "The most that was reserved at one time since the server's start, of the budget asked for. Where it"
                   " stays low the budget is larger than it need be; above 100 % the budget was lowered since.",
                   parts_of_budgets("memory_peak_bytes", "memory_wanted_budget_bytes"), units.PercentUnit, span=6),
            curves("Evictions",
                   "Copies of modules that were dropped to make room, each second. A sudden rise is a budget that sank,"
                   " or profiles that compete.",
                   {"{{memory}}": f"sum by (memory) ({ALL.rate('evictions_total')})"}, units.OpsPerSecond, span=6),
            curves("Kept modulation, by device",
                   "Of the passes, those that did not move what makes modulation, a third of the weights; and of the"
                   " memory that keeps it (memory.modulation), what is in use. Full, and few passes read it: it is too"
                   " small for the schedules that come.",
                   {"{{instance}} {{device}} passes": part(ALL.rate("modulation_lookups_total", 'result="hit"'),
                                                           ALL.rate("modulation_lookups_total"), BY_DEVICE),
                    "{{instance}} {{device}} in use": part(ALL.of("modulation_used_bytes"),
                                                           ALL.of("memory_bytes", 'kind="modulation"', 'memory="device"'),
                                                           BY_DEVICE)}, units.PercentUnit, span=6),
        ],
        "Requests": [
            curves("Riders and queue",
                   "Requests by how far they are: in a sweep, admitted (with those that wait for the next sweep),"
                   " waiting. A queue that only grows ends in refusals.",
                   {"in a sweep": f"sum ({ALL.of('sweep_riders')})",
                    "admitted": f"sum ({ALL.of('requests_active')})",
                    "waiting": f"sum ({ALL.of('requests_waiting')})"}, units.Short, span=6),
            curves("Predicted wait, by server",
                   "How long a request that came now would wait for admission. Above a minute DitserveLongQueue fires.",
                   {"{{instance}}": ALL.of("predicted_wait_seconds")}, units.Seconds, span=6),
            curves("Requests, by device",
                   "Requests in a sweep and waiting, by the device that they went to: where each was predicted to end"
                   " first.",
                   {"{{instance}} {{device}} {{state}}": ALL.of("device_requests")}, units.Short, span=6),
            passes_by_model(),
            latency(ALL, 0.5, "median"),
            latency(ALL, 0.99, "99th percentile"),
            loops(ALL, span=24),
            errors(ALL),
            curves("Faults and refusals, by server",
                   "Shares of the requests that ended by a fault, unavailable or too late, or were refused because the"
                   " server was full. DitserveFaults fires above 1 %, DitserveUnanswered above 25 %,"
                   " DitserveRefusesRequests above 5 %.",
                   {"{{instance}} faults": ALL.ended(FAULTS, BY_SERVER),
                    "{{instance}} unanswered": ALL.ended(UNANSWERED, BY_SERVER),
                    "{{instance}} refused": ALL.ended(REFUSED, BY_SERVER)}, units.PercentUnit),
        ],
        "Gate": [
            curves("Connections, by address",
                   "Clients' connections. Many with few calls are clients that connect for each call, or a flood.",
                   {"{{door}}": f"sum by (door) ({ALL.of('gate_connections')})"}, units.Short, span=8),
            curves("Calls, by address",
                   "Calls of all services that were let in and have not ended. Near max_concurrent_calls more are"
                   " refused.",
                   {"{{door}}": f"sum by (door) ({ALL.of('gate_calls')})"}, units.Short, span=8),
            curves("Bytes of messages, by address",
                   "What the requests of these calls take, but for those of up to 64 KiB. Near message_memory others"
                   " wait.",
                   {"{{door}}": f"sum by (door) ({ALL.of('gate_message_bytes')})"}, units.BytesIEC, span=8),
            curves("Bytes of answers, by server",
                   "What answers take until their clients have read them, of calls that wait too. Near answer_memory more"
                   " calls are refused.",
                   {"{{instance}}": ALL.of("answer_bytes")}, units.BytesIEC),
            curves("Sent away at the gate",
                   "Calls that were refused there, by code, and connections that were closed as there were too many,"
                   " each second: none of them reached the queue. UNAUTHENTICATED and PERMISSION_DENIED: the clients'"
                   " tokens; RESOURCE_EXHAUSTED: calls, messages or a token's limits. Above ten in five minutes of one of"
                   " these DitserveGateRefuses fires.",
                   {"{{code}}": f"sum by (code) ({ALL.rate('gate_refused_total')})",
                    "connections": f"sum ({ALL.rate('gate_connections_turned_away_total')})"}, units.OpsPerSecond),
            curves("Until the certificate ends, by server",
                   "How long the TLS certificate that is served is still valid; nothing without TLS. Below seven days"
                   " DitserveCertificateEnds fires.",
                   {"{{instance}}": f"{ALL.of('certificate_not_after_seconds')} - time()"}, units.Seconds),
        ],
        "Transfers and stalls": [
            curves("Transfers",
                   "Bytes that were moved between two tiers, each second, over all servers. Compare disk to host with"
                   " what the disks can do.",
                   {"{{from}} to {{to}}": f"sum by (from, to) ({ALL.rate('transfer_bytes_total')})"},
                   units.BytesPerSecondIEC, span=8),
            curves("Modules computed, by device",
                   "Modules that requests computed, each second. Where there are riders, and it and the transfers stay"
                   " at nothing for half an hour, DitserveStandsStill fires.",
                   {"{{instance}} {{device}}": ALL.rate("modules_computed_total")}, units.OpsPerSecond, span=8),
            stalls(ALL, span=8),
            stages(ALL),
            durations(ALL),
        ],
        "Servers": [
            curves("Versions", "How many servers run each version: two at a time are an update under way.",
                   {"{{version}}": f"count by (version) ({ALL.of('build_info')})"}, units.Short),
            curves("Models that are loaded",
                   "Share of the servers that have loaded the model. Below 100 % for 5 minutes DitserveModelNotLoaded"
                   " fires.",
                   {"{{model}}": f"avg by (model) ({ALL.of('model_load_progress_ratio')})"}, units.PercentUnit),
        ],
    }
    return board("overview", "Memory, requests and transfers of all ditserve servers.", rows, other="model")


def model() -> dashboard.Dashboard:
    weights = ONE_MODEL.of("weights_bytes")
    in_memory = ONE_MODEL.of("weights_bytes", 'tier!="disk"')
    rows = {
        "Now": [
            number("Loaded", "Share of the servers that have loaded the model.",
                   {"loaded": f"avg ({ONE_MODEL.of('model_load_progress_ratio')})"}, units.PercentUnit),
            number("In memory", "Share of the weights that lie in host or device memory, over all servers.",
                   {"in memory": part(in_memory, weights)}, units.PercentUnit),
            answered(ONE_MODEL),
            number("Median duration", "Half of the passes took no longer, from arrival to response.",
                   {"median": ONE_MODEL.quantile(0.5, "forward_duration_seconds", PASSES)}, units.Seconds),
            number("99th percentile", "All but one pass of a hundred took no longer, from arrival to response.",
                   {"99 of 100": ONE_MODEL.quantile(0.99, "forward_duration_seconds", PASSES)}, units.Seconds),
            number("Stalled", "Share of their time that requests waited for weights. Above a half DitserveStalls fires.",
                   {"stalled": ONE_MODEL.stalled("sum")}, units.PercentUnit, bad_from=0.5),
        ],
        "Weights": [
            tiers(ONE_MODEL),
            curves("In memory, by server",
                   "Share of the weights that lie in host or device memory. Each further percent is a percent less to"
                   " move.",
                   {"{{instance}}": part(in_memory, weights, BY_SERVER)}, units.PercentUnit),
        ],
        "Requests": [
            curves("Passes by profile",
                   'Answered passes, each second. Profiles that requests bring themselves are all "inline".',
                   {"{{profile}}": f"sum by (profile) ({ONE_MODEL.rate('forward_duration_seconds_count', PASSES)})"},
                   units.RequestsPerSecond, span=8),
            curves("Requests by method",
                   "Requests that have ended, each second. ModelInfer is the Open Inference Protocol's, the others are"
                   " ditserve's own.",
                   {"{{rpc}}": f"sum by (rpc) ({ONE_MODEL.rate('requests_total')})"}, units.RequestsPerSecond, span=8),
            errors(ONE_MODEL, span=8),
            latency(ONE_MODEL, 0.5, "median"),
            latency(ONE_MODEL, 0.99, "99th percentile"),
            loops(ONE_MODEL),
            steps(ONE_MODEL),
        ],
        "Time": [
            stages(ONE_MODEL),
            curves("Stages, 99th percentile",
                   "All but one pass of a hundred spent no longer on the stage. Queue is the time before it began,"
                   " stall the wait for weights.",
                   {"{{stage}}": ONE_MODEL.quantile(0.99, "stage_duration_seconds", PASSES, "stage")}, units.Seconds),
            durations(ONE_MODEL),
            stalls(ONE_MODEL),
        ],
    }
    return board("model", "One model's weights, requests and where their time goes.", rows, other="overview")


def variable(name: str, series: str, description: str) -> dashboard.QueryVariable:
    return (dashboard.QueryVariable(name).label(name).description(description).datasource(SOURCE)
            .query(f"label_values({series}, {name})").refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC))


def several(of: dashboard.QueryVariable) -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    return of.multi(True).include_all(True).all_value(".*").current(everything)


def board(name: str, description: str, rows: dict[str, list[Panel]], other: str) -> dashboard.Dashboard:
    link = (dashboard.DashboardLink(f"ditserve / {other}").type(DashboardLinkType.LINK).url(f"/d/ditserve-{other}")
            .include_vars(True).keep_time(True))
    made = (dashboard.Dashboard(f"ditserve / {name}").uid(f"ditserve-{name}").description(description)
            .tags(["ditserve"]).time("now-1h", "now").refresh("30s").tooltip(DashboardCursorSync.CROSSHAIR).link(link)
            .with_variable(dashboard.DatasourceVariable("datasource").label("datasource").type("prometheus"))
            .with_variable(several(variable("namespace", 'up{job="ditserve"}',
                                            "Kubernetes' namespace. All takes servers without one too.")))
            .with_variable(several(variable("instance", 'up{job="ditserve",namespace=~"$namespace"}',
                                            "Server, as Prometheus names it."))))
    if name == "model":
        made.with_variable(variable("model", f"ditserve_weights_bytes{{{SERVERS}}}", "Name of a loaded model."))
    for title, panels in rows.items():
        made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(panel)
    return made


def write(folder: Path) -> None:
    for made in (overview(), model()):
        built = made.build()
        for number_of_panel, panel in enumerate(built.panels, start=1):
            panel.id_val = number_of_panel
        (folder / f"{built.uid}.json").write_text(JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
