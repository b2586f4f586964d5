#include "server/observe/status_page.h"

#include <nlohmann/json.hpp>

#include "absl/time/time.h"
#include "core/base/memory.h"

namespace ditserve {
namespace {

using Json = nlohmann::ordered_json;

Json MemoryJson(const std::string& name, const MemoryUsage& usage, int64_t evictions, int64_t other_processes_bytes) {
  return {{"name", name},
          {"budget_bytes", usage.budget_bytes},
          {"wanted_budget_bytes", usage.wanted_bytes},
          {"weights_bytes", usage.weights_bytes},
          {"staging_bytes", usage.staging_bytes},
          {"activations_bytes", usage.activations_bytes},
          {"runtime_bytes", usage.runtime_bytes},
          {"peak_bytes", usage.peak_bytes},
          {"evictions", evictions},
          {"other_processes_bytes", other_processes_bytes}};
}

Json RiderJson(const RiderInfo& rider) {
  return {{"model", rider.model},
          {"profile", rider.profile},
          {"modules_done", rider.modules_done},
          {"modules_total", rider.modules_total},
          {"priority", rider.priority == Priority::kBatch ? "batch" : "interactive"},
          {"awaits_sweep", rider.waiting},
          {"stall_seconds", absl::ToDoubleSeconds(rider.stall)}};
}

}  // namespace

std::string StatusJson(const ResidencySnapshot& snapshot, const std::string& version) {
  Json json = {{"version", version},        {"time_seconds", absl::ToDoubleSeconds(snapshot.time)},
               {"memories", Json::array()}, {"models", Json::array()},
               {"riders", Json::array()},   {"requests_waiting", snapshot.waiting},
               {"transfers", Json::array()}};
  json["memories"].push_back(MemoryJson("device " + snapshot.device_name, snapshot.device, snapshot.evictions[0],
                                        snapshot.other_processes_bytes));
  json["memories"].push_back(MemoryJson("host", snapshot.host, snapshot.evictions[1], 0));
  for (const TierBytes& model : snapshot.models) {
    json["models"].push_back(Json{{"model", model.model},
                                  {"device_bytes", model.device_bytes},
                                  {"host_bytes", model.host_bytes},
                                  {"disk_bytes", model.disk_bytes}});
  }
  for (const RiderInfo& rider : snapshot.riders) json["riders"].push_back(RiderJson(rider));
  for (const TransferTotal& total : snapshot.transfers) {
    json["transfers"].push_back(
        Json{{"from", std::string(Name(total.from))}, {"to", std::string(Name(total.to))}, {"bytes", total.bytes}});
  }
  return json.dump();
}

}  // namespace ditserve
