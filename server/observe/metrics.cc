// The one file that knows prometheus-cpp. Its exposer would add series about itself that have no prefix of ours, so
// HttpEndpoint serves the text.
#include "server/observe/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace ditserve {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

// Seconds, from a millisecond to half a day. A pass takes from tens of milliseconds on a large device to many minutes
// from a disk, and a loop tens of those; what they stall or wait is often a small part of that, and in a long queue a
// large one.
const prometheus::Histogram::BucketBoundaries& Buckets() {
  static const auto& buckets = *new prometheus::Histogram::BucketBoundaries(
      {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,  0.25, 0.5,  1,     2.5,   5,
       10,    25,     50,    100,  250,   500,  1000, 2500, 5000, 10000, 25000, 50000});
  return buckets;
}

// A family whose values are read now.
class FamilyBuilder {
 public:
  FamilyBuilder(MetricType type, const std::string& name, const std::string& help) {
    family_.type = type;
    family_.name = name;
    family_.help = help;
  }

  FamilyBuilder& Add(const Labels& labels, double value) {
    ClientMetric metric;
    metric.label = labels;
    (family_.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
    family_.metric.push_back(std::move(metric));
    return *this;
  }
  FamilyBuilder& Add(const Labels& labels, int64_t value) { return Add(labels, static_cast<double>(value)); }

  MetricFamily Build() { return std::move(family_); }

 private:
  MetricFamily family_;
};

FamilyBuilder Gauge(const std::string& name, const std::string& help) { return {MetricType::Gauge, name, help}; }
FamilyBuilder Counter(const std::string& name, const std::string& help) { return {MetricType::Counter, name, help}; }

MetricFamily WeightsBytes(const ResidencySnapshot& snapshot) {
  FamilyBuilder family =
      Gauge("ditserve_weights_bytes", "Parameters in stored bytes by the nearest tier that holds them.");
  for (const TierBytes& model : snapshot.models) {
    family.Add({{"model", model.model}, {"tier", "device"}}, model.device_bytes);
    family.Add({{"model", model.model}, {"tier", "host"}}, model.host_bytes);
    family.Add({{"model", model.model}, {"tier", "disk"}}, model.disk_bytes);
  }
  return family.Build();
}

// What labels tell of each memory: a device's is named too.
std::vector<std::pair<Labels, MemoryInfo>> Memories(const ResidencySnapshot& snapshot) {
  std::vector<std::pair<Labels, MemoryInfo>> memories;
  for (const DeviceInfo& device : snapshot.devices) {
    memories.emplace_back(Labels{{"memory", "device"}, {"device", device.name}}, device.memory);
  }
  memories.emplace_back(Labels{{"memory", "host"}}, snapshot.host);
  return memories;
}

// One figure a memory.
template <typename Of>
MetricFamily ByMemory(FamilyBuilder family, const ResidencySnapshot& snapshot, Of of) {
  for (const auto& [labels, memory] : Memories(snapshot)) family.Add(labels, of(memory));
  return family.Build();
}
MetricFamily ByMemory(FamilyBuilder family, const ResidencySnapshot& snapshot, int64_t MemoryUsage::*field) {
  return ByMemory(std::move(family), snapshot, [field](const MemoryInfo& memory) { return memory.usage.*field; });
}

MetricFamily MemoryBytes(const ResidencySnapshot& snapshot) {
  FamilyBuilder family = Gauge("ditserve_memory_bytes", "Reserved bytes by what they are for.");
  for (const auto& [labels, memory] : Memories(snapshot)) {
    for (const auto& [kind, bytes] :
         {std::pair("weights", memory.usage.weights_bytes), std::pair("staging", memory.usage.staging_bytes),
          std::pair("activations", memory.usage.activations_bytes),
          std::pair("modulation", memory.usage.modulation_bytes), std::pair("runtime", memory.usage.runtime_bytes)}) {
      Labels of_kind = labels;
      of_kind.push_back({"kind", kind});
      family.Add(of_kind, bytes);
    }
  }
  return family.Build();
}

MetricFamily OtherProcessesBytes(const ResidencySnapshot& snapshot) {
  FamilyBuilder family = Gauge("ditserve_device_other_processes_bytes", "Device memory that other processes hold.");
  for (const DeviceInfo& device : snapshot.devices) {
    family.Add({{"device", device.name}}, device.other_processes_bytes);
  }
  return family.Build();
}

MetricFamily TransferBytes(const ResidencySnapshot& snapshot) {
  FamilyBuilder family = Counter("ditserve_transfer_bytes_total", "Bytes moved between two tiers.");
  for (const TransferTotal& total : snapshot.transfers) {
    Labels labels = {{"from", std::string(Name(total.from))}, {"to", std::string(Name(total.to))}};
    if (total.to == Tier::kDevice) labels.push_back({"device", snapshot.devices[total.device].name});
    family.Add(labels, total.bytes);
  }
  return family.Build();
}

MetricFamily ModulesComputed(const ResidencySnapshot& snapshot) {
  FamilyBuilder family = Counter("ditserve_modules_computed_total", "Modules that requests computed, by device.");
  for (const DeviceInfo& device : snapshot.devices) family.Add({{"device", device.name}}, device.modules_computed);
  return family.Build();
}

// One figure a device.
MetricFamily OfModulation(FamilyBuilder family, const ResidencySnapshot& snapshot, int64_t ModulationInfo::*field) {
  for (const DeviceInfo& device : snapshot.devices) family.Add({{"device", device.name}}, device.modulation.*field);
  return family.Build();
}

MetricFamily ModulationLookups(const ResidencySnapshot& snapshot) {
  FamilyBuilder family =
      Counter("ditserve_modulation_lookups_total", "Passes by whether modulation was kept for all that they needed.");
  for (const DeviceInfo& device : snapshot.devices) {
    family.Add({{"device", device.name}, {"result", "hit"}}, device.modulation.hits);
    family.Add({{"device", device.name}, {"result", "miss"}}, device.modulation.misses);
  }
  return family.Build();
}

// Where requests are; the sums are ditserve_sweep_riders and ditserve_requests_waiting.
MetricFamily DeviceRequests(const ResidencySnapshot& snapshot) {
  std::vector<int64_t> riding(snapshot.devices.size()), waiting;
  for (const DeviceInfo& device : snapshot.devices) waiting.push_back(device.waiting);
  for (const RiderInfo& rider : snapshot.riders) {
    (rider.waiting ? waiting : riding)[static_cast<size_t>(rider.device)] += 1;
  }
  FamilyBuilder family = Gauge("ditserve_device_requests", "Requests by the device that they went to.");
  for (size_t i = 0; i < snapshot.devices.size(); ++i) {
    family.Add({{"device", snapshot.devices[i].name}, {"state", "riding"}}, riding[i]);
    family.Add({{"device", snapshot.devices[i].name}, {"state", "waiting"}}, waiting[i]);
  }
  return family.Build();
}

// Reads the engine at every scrape.
class EngineCollector {
 public:
  EngineCollector(const Engine* engine, std::string version) : engine_(*engine), version_(std::move(version)) {}

  std::vector<MetricFamily> Collect() const {
    const ResidencySnapshot snapshot = engine_.Residency();
    int64_t riding = 0, waiting = snapshot.waiting();
    for (const RiderInfo& rider : snapshot.riders) (rider.waiting ? waiting : riding) += 1;
    return {
        WeightsBytes(snapshot),
        MemoryBytes(snapshot),
        ByMemory(Gauge("ditserve_memory_budget_bytes", "The budget in force."), snapshot, &MemoryUsage::budget_bytes),
        ByMemory(
            Gauge("ditserve_memory_wanted_budget_bytes",
                  "The budget that was asked for. The one in force is less while other processes need the memory."),
            snapshot, &MemoryUsage::wanted_bytes),
        ByMemory(Gauge("ditserve_memory_peak_bytes", "Most reserved bytes at one time since the start."), snapshot,
                 &MemoryUsage::peak_bytes),
        Gauge("ditserve_host_unpinned_bytes", "Host memory that was to be pinned for copies and could not be.")
            .Add({}, snapshot.host_unpinned_bytes)
            .Build(),
        OtherProcessesBytes(snapshot),
        TransferBytes(snapshot),
        ModulesComputed(snapshot),
        ByMemory(Counter("ditserve_evictions_total", "Copies dropped to make room."), snapshot,
                 [](const MemoryInfo& memory) { return memory.evictions; }),
        OfModulation(Gauge("ditserve_modulation_rows", "Timesteps whose modulation is kept."), snapshot,
                     &ModulationInfo::rows),
        OfModulation(Gauge("ditserve_modulation_used_bytes", "What is in use of the memory that keeps modulation."),
                     snapshot, &ModulationInfo::used_bytes),
        ModulationLookups(snapshot),
        OfModulation(Counter("ditserve_modulation_evictions_total", "Timesteps whose modulation went for others."),
                     snapshot, &ModulationInfo::evictions),
        Gauge("ditserve_requests_active", "Admitted requests, those that wait for the next sweep among them.")
            .Add({}, static_cast<int64_t>(snapshot.riders.size()))
            .Build(),
        Gauge("ditserve_requests_waiting", "Requests that wait for admission or for the next sweep.")
            .Add({}, waiting)
            .Build(),
        Gauge("ditserve_predicted_wait_seconds",
              "How long a request that came now would wait for admission, if it is as those before it were.")
            .Add({}, absl::ToDoubleSeconds(snapshot.predicted_wait()))
            .Build(),
        Gauge("ditserve_sweep_riders", "Requests in a sweep.").Add({}, riding).Build(),
        DeviceRequests(snapshot),
        LoadProgress(),
        Gauge("ditserve_build_info", "1; the label tells the version.")
            .Add({{"version", version_}}, int64_t{1})
            .Build(),
    };
  }

 private:
  MetricFamily LoadProgress() const {
    FamilyBuilder family = Gauge("ditserve_model_load_progress_ratio", "1 when the model is loaded.");
    for (const ModelInfo& model : engine_.Models()) {
      family.Add({{"model", model.name}}, static_cast<int64_t>(model.ready ? 1 : 0));
    }
    return family.Build();
  }

  const Engine& engine_;
  const std::string version_;
};

std::vector<MetricFamily> CollectGate(const GateFigures& gate) {
  FamilyBuilder connections =
      Gauge("ditserve_gate_connections", "Clients' connections, by the address that they came to.");
  FamilyBuilder calls = Gauge("ditserve_gate_calls", "Calls of all services that were let in and have not ended.");
  FamilyBuilder bytes = Gauge("ditserve_gate_message_bytes", "Bytes of their requests, but for those of up to 64 KiB.");
  FamilyBuilder turned_away =
      Counter("ditserve_gate_connections_turned_away_total", "Connections that were closed as there were too many.");
  FamilyBuilder refused = Counter("ditserve_gate_refused_total", "Calls that were refused at the gate, by gRPC code.");
  for (const DoorFigures& door : gate.doors) {
    const Labels labels = {{"door", door.name}};
    connections.Add(labels, door.connections);
    calls.Add(labels, door.calls);
    bytes.Add(labels, door.message_bytes);
    turned_away.Add(labels, door.turned_away);
    // A series that begins with its first refusal would not be seen to rise.
    std::map<absl::StatusCode, int64_t> by_code = {{absl::StatusCode::kResourceExhausted, 0},
                                                   {absl::StatusCode::kUnauthenticated, 0},
                                                   {absl::StatusCode::kPermissionDenied, 0}};
    for (const auto& [code, count] : door.refused) by_code[code] = count;
    for (const auto& [code, count] : by_code) {
      refused.Add({{"door", door.name}, {"code", absl::StatusCodeToString(code)}}, count);
    }
  }
  std::vector<MetricFamily> families = {
      connections.Build(),
      calls.Build(),
      bytes.Build(),
      turned_away.Build(),
      refused.Build(),
      Gauge("ditserve_answer_bytes", "What the answers of calls take that have not ended.")
          .Add({}, gate.answer_bytes)
          .Build()};
  if (gate.certificate_ends != absl::InfiniteFuture()) {
    families.push_back(Gauge("ditserve_certificate_not_after_seconds",
                             "When the TLS certificate ends to be valid, in seconds of Unix' time.")
                           .Add({}, absl::ToUnixSeconds(gate.certificate_ends))
                           .Build());
  }
  return families;
}

class MetricsImpl final : public Metrics {
 public:
  MetricsImpl(const Engine* engine, const std::vector<std::string>& profiles, const std::string& version)
      : profiles_(profiles.begin(), profiles.end()),
        engine_(engine, version),
        requests_(prometheus::BuildCounter()
                      .Name("ditserve_requests_total")
                      .Help("Forward passes and denoising loops that have ended, by method, gRPC code and model.")
                      .Register(registry_)),
        durations_(prometheus::BuildHistogram()
                       .Name("ditserve_forward_duration_seconds")
                       .Help("From arrival to the response of answered calls; a Denoise is a whole loop.")
                       .Register(registry_)),
        stages_(prometheus::BuildHistogram()
                    .Name("ditserve_stage_duration_seconds")
                    .Help("What answered calls spent their time on.")
                    .Register(registry_)),
        steps_(prometheus::BuildCounter()
                   .Name("ditserve_denoise_steps_total")
                   .Help("Steps of denoising loops that were answered, those that a step cache skipped among them.")
                   .Register(registry_)) {
    // A series that begins with its first fault, or step, would not be seen to rise.
    for (const ModelInfo& model : engine->Models()) {
      steps_.Add({{"model", model.name}});
      for (const char* rpc : {"Forward", "ForwardStream", "ModelInfer", "Denoise"}) {
        for (const absl::StatusCode code : {absl::StatusCode::kOk, absl::StatusCode::kDataLoss,
                                            absl::StatusCode::kInternal, absl::StatusCode::kResourceExhausted,
                                            absl::StatusCode::kUnavailable, absl::StatusCode::kDeadlineExceeded}) {
          Ended(rpc, code, model.name);
        }
      }
    }
  }

  void OnEnd(const EndedRequest& request) override {
    Ended(request.rpc, request.code, request.model).Increment();
    if (request.account == nullptr) return;
    const std::string profile = profiles_.contains(request.profile) ? request.profile : "inline";
    Observe(durations_, {{"model", request.model}, {"profile", profile}, {"rpc", request.rpc}}, request.duration);
    for (const auto& [stage, duration] : {std::pair("queue", request.account->queue),
                                          {"stall", request.account->stall},
                                          {"compute", request.account->compute}}) {
      Observe(stages_, {{"model", request.model}, {"rpc", request.rpc}, {"stage", stage}}, duration);
    }
    if (request.steps > 0) steps_.Add({{"model", request.model}}).Increment(static_cast<double>(request.steps));
  }

  std::string Scrape(const GateFigures& gate) const override {
    std::vector<MetricFamily> families = engine_.Collect();
    std::vector<MetricFamily> of_gate = CollectGate(gate);
    std::move(of_gate.begin(), of_gate.end(), std::back_inserter(families));
    std::vector<MetricFamily> counted = registry_.Collect();
    std::move(counted.begin(), counted.end(), std::back_inserter(families));
    std::ostringstream text;
    prometheus::TextSerializer().Serialize(text, families);
    return text.str();
  }

 private:
  prometheus::Counter& Ended(const char* rpc, absl::StatusCode code, const std::string& model) {
    return requests_.Add({{"rpc", rpc}, {"code", absl::StatusCodeToString(code)}, {"model", model}});
  }

  static void Observe(prometheus::Family<prometheus::Histogram>& family, const prometheus::Labels& labels,
                      absl::Duration duration) {
    family.Add(labels, Buckets()).Observe(absl::ToDoubleSeconds(duration));
  }

  const std::set<std::string> profiles_;
  const EngineCollector engine_;
  prometheus::Registry registry_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Histogram>& durations_;
  prometheus::Family<prometheus::Histogram>& stages_;
  prometheus::Family<prometheus::Counter>& steps_;
};

}  // namespace

std::unique_ptr<Metrics> Metrics::Make(const Engine* engine, const std::vector<std::string>& profiles,
                                       const std::string& version) {
  return std::make_unique<MetricsImpl>(engine, profiles, version);
}

}  // namespace ditserve
