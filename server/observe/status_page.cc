#include "server/observe/status_page.h"

#include <nlohmann/json.hpp>

#include "absl/time/time.h"
#include "core/base/memory.h"

namespace ditserve {
namespace {

using Json = nlohmann::ordered_json;

Json MemoryJson(const std::string& name, const MemoryInfo& memory, int64_t other_processes_bytes) {
  const MemoryUsage& usage = memory.usage;
  return {{"name", name},
          {"budget_bytes", usage.budget_bytes},
          {"wanted_budget_bytes", usage.wanted_bytes},
          {"weights_bytes", usage.weights_bytes},
          {"staging_bytes", usage.staging_bytes},
          {"activations_bytes", usage.activations_bytes},
          {"modulation_bytes", usage.modulation_bytes},
          {"runtime_bytes", usage.runtime_bytes},
          {"peak_bytes", usage.peak_bytes},
          {"evictions", memory.evictions},
          {"other_processes_bytes", other_processes_bytes}};
}

Json RiderJson(const RiderInfo& rider, const std::string& device) {
  return {{"model", rider.model},
          {"profile", rider.profile},
          {"device", device},
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
               {"riders", Json::array()},   {"requests_waiting", snapshot.waiting()},
               {"transfers", Json::array()}};
  for (const DeviceInfo& device : snapshot.devices) {
    json["memories"].push_back(MemoryJson("device " + device.name, device.memory, device.other_processes_bytes));
  }
  json["memories"].push_back(MemoryJson("host", snapshot.host, 0));
  for (const TierBytes& model : snapshot.models) {
    json["models"].push_back(Json{{"model", model.model},
                                  {"device_bytes", model.device_bytes},
                                  {"host_bytes", model.host_bytes},
                                  {"disk_bytes", model.disk_bytes}});
  }
  for (const RiderInfo& rider : snapshot.riders) {
    json["riders"].push_back(RiderJson(rider, snapshot.NameOf(rider.device)));
  }
  for (const TransferTotal& total : snapshot.transfers) {
    const bool to_device = total.to == Tier::kDevice;
    json["transfers"].push_back(Json{{"from", std::string(Name(total.from))},
                                     {"to", to_device ? "device " + snapshot.NameOf(total.device) : "host"},
                                     {"bytes", total.bytes}});
  }
  return json.dump();
}

}  // namespace ditserve
