// A scenario as text that can be pasted into a test.
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/simulation/scenario.h"

namespace ditserve::simulation {
namespace {

std::string Numbers(const std::vector<int64_t>& numbers) {
  return absl::StrCat("{", absl::StrJoin(numbers, ", "), "}");
}

std::string Ticks(absl::Duration duration) {
  return absl::StrCat("absl::Microseconds(", absl::ToInt64Microseconds(duration), ")");
}

std::string DescribeRoute(const Route& route) {
  std::string stops;
  for (const Stop& stop : route.stops) {
    absl::StrAppend(&stops, stops.empty() ? "" : ", ", "{Tier::", stop.tier == Tier::kDevice ? "kDevice" : "kHost",
                    ", ", stop.form, "}");
  }
  return absl::StrCat("{{", stops, "}, ", Numbers(route.stop_bytes), ", ", route.compute_bytes, ", ", route.rest, ", ",
                      route.limited, ", ", route.compute, "}");
}

std::string DescribeClient(const Scenario::Client& client) {
  const Policy::JoinRequest& request = client.request;
  std::string text =
      absl::StrCat("s.clients.push_back({{", request.weights, ", DeviceMemory(", DeviceOf(request.device), "), {\n");
  for (const Route& route : request.routes) absl::StrAppend(&text, "    ", DescribeRoute(route), ",\n");
  absl::StrAppend(
      &text, "}, ", request.limit_bytes ? absl::StrCat(*request.limit_bytes) : "std::nullopt", ", ",
      request.activation_bytes, ", Priority::", request.priority == Priority::kBatch ? "kBatch" : "kInteractive",
      ", static_cast<JoinPolicy>(", static_cast<int>(request.join), "), ", request.host_bytes, "}, ", client.joins_at,
      ", ", client.cancels_at, ", ", client.operation, ", ", client.comes_again ? "true" : "false", ", ", client.laps,
      ", ", client.decides ? "true" : "false", "});\n");
  return text;
}

}  // namespace

std::string Describe(const Scenario& s) {
  std::string text = absl::StrCat("Scenario s;\ns.options = {", s.options.max_riders, ", ", s.options.max_waiting, ", ",
                                  s.options.max_loads, ", ", Ticks(s.options.ageing), ", ",
                                  Ticks(s.options.growth_pause), ", ", Ticks(s.options.idle_release), "};\n");
  for (const PolicyDevice& device : s.devices) {
    absl::StrAppend(&text, "s.devices.push_back({", device.in_host_memory ? "true" : "false", "});\n");
  }
  absl::StrAppend(&text, "s.fixed_bytes = ", Numbers(s.fixed_bytes), ";\ns.budget_bytes = ", Numbers(s.budget_bytes),
                  ";\n");
  for (const auto& modules : s.weights) absl::StrAppend(&text, "s.weights.push_back(", Numbers(modules), ");\n");
  absl::StrAppend(
      &text, "s.parents = {", absl::StrJoin(s.parents, ", "), "};\ns.transfer = ", s.transfer,
      ", s.operation = ", s.operation, ", s.freeing = ", s.freeing,
      ";\ns.late_finish = ", s.late_finish ? "true" : "false", ", s.only_budgets = ", s.only_budgets ? "true" : "false",
      ", s.pressed = ", s.pressed ? "true" : "false", ";\ns.faults_until = ", s.faults_until,
      ", s.fault_gap = ", s.fault_gap, ", s.system_bytes = ", s.system_bytes, ", s.renew_at = ", s.renew_at, ";\n");
  for (const Scenario::Client& client : s.clients) absl::StrAppend(&text, DescribeClient(client));
  return text;
}

}  // namespace ditserve::simulation
