#include "client/ditctl/print.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/ditctl/tensors.h"

namespace ditserve::ditctl {
namespace {

// "disk", or "bfloat16 on cpu".
std::string Station(const std::string& dtype, const std::string& device) {
  return device == "disk" ? "disk" : absl::StrCat(dtype, " on ", device);
}

std::string ShapeText(const google::protobuf::RepeatedField<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace

std::string DTypeName(v1::Dtype dtype) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::Dtype_Name(dtype), "DTYPE_"));
}

std::string TierName(v1::Tier tier) { return absl::AsciiStrToLower(absl::StripPrefix(v1::Tier_Name(tier), "TIER_")); }

std::string MemoryName(const v1::MemoryUse& memory) {
  return memory.device().empty() ? TierName(memory.tier())
                                 : absl::StrCat(TierName(memory.tier()), " ", memory.device());
}

std::string Seconds(const google::protobuf::Duration& duration) {
  return absl::StrFormat("%.2f s", static_cast<double>(duration.seconds()) + 1e-9 * duration.nanos());
}

Statistics StatisticsOf(const v1::Tensor& tensor) {
  Statistics statistics;
  double sum = 0, squares = 0;
  int64_t finite = 0;
  for (const float value : Floats(tensor)) {
    if (!std::isfinite(value)) {
      ++statistics.non_finite;
      continue;
    }
    statistics.min = finite == 0 ? value : std::min(statistics.min, value);
    statistics.max = finite == 0 ? value : std::max(statistics.max, value);
    ++finite;
    sum += value;
    squares += static_cast<double>(value) * value;
  }
  if (finite == 0) return statistics;
  statistics.mean = sum / static_cast<double>(finite);
  const double variance = squares / static_cast<double>(finite) - statistics.mean * statistics.mean;
  statistics.deviation = std::sqrt(std::max(0.0, variance));
  return statistics;
}

std::string Describe(const v1::Tensor& output, const Statistics& statistics) {
  return absl::StrFormat(
      "output      %s %s\n            mean %.5f, deviation %.5f, min %.5f, max %.5f, non-finite %d\n",
      ShapeText(output.shape()), DTypeName(output.dtype()), statistics.mean, statistics.deviation, statistics.min,
      statistics.max, statistics.non_finite);
}

std::string NonFiniteWarning(const Statistics& statistics) {
  if (statistics.non_finite == 0) return "";
  return absl::StrCat("WARNING: ", statistics.non_finite,
                      " elements of the output are NaN or infinite; do not use this result\n");
}

std::string Describe(const v1::ForwardStats& stats) {
  return absl::StrCat("time        ", Seconds(stats.total()), " in all: queue ", Seconds(stats.queue()), ", stall ",
                      Seconds(stats.stall()), ", compute ", Seconds(stats.compute()), "\n", "moved       ",
                      Bytes(stats.disk_read_bytes()), " from disk, ", Bytes(stats.device_copy_bytes()),
                      " to the device\n", "device      ", Bytes(stats.peak_device_bytes()), " at most, riders ",
                      stats.riders(), stats.device().empty() ? "" : ", on ", stats.device(), "\n");
}

std::string Describe(const v1::Residency& residency) {
  std::vector<std::vector<std::string>> rows = {
      {"MEMORY", "BUDGET", "WEIGHTS", "STAGING", "ACTIVATIONS", "MODULATION", "RUNTIME", "PEAK"}};
  for (const v1::MemoryUse& memory : residency.memories()) {
    rows.push_back({MemoryName(memory), Bytes(memory.budget_bytes()), Bytes(memory.weights_bytes()),
                    Bytes(memory.staging_bytes()), Bytes(memory.activations_bytes()), Bytes(memory.modulation_bytes()),
                    Bytes(memory.runtime_bytes()), Bytes(memory.peak_bytes())});
  }
  std::string text = absl::StrCat(Table(rows), "\n");
  rows = {{"MODEL", "DEVICE", "HOST", "DISK"}};
  for (const v1::ModelResidency& model : residency.models()) {
    rows.push_back({model.model(), Bytes(model.device_bytes()), Bytes(model.host_bytes()), Bytes(model.disk_bytes())});
  }
  absl::StrAppend(&text, Table(rows));
  if (residency.riders_size() > 0) {
    rows = {{"RIDER", "PROFILE", "DEVICE", "MODULES", "STALL"}};
    for (const v1::Rider& rider : residency.riders()) {
      rows.push_back({rider.model(), rider.profile().empty() ? "(inline)" : rider.profile(), rider.device(),
                      rider.awaits_sweep() ? "waits for the next sweep"
                                           : absl::StrCat(rider.modules_done(), " of ", rider.modules_total()),
                      Seconds(rider.stall())});
    }
    absl::StrAppend(&text, "\n", Table(rows));
  }
  if (residency.requests_waiting() > 0) absl::StrAppend(&text, "\n", residency.requests_waiting(), " requests wait\n");
  return text;
}

std::string Describe(const v1::ListProfilesResponse& profiles) {
  std::vector<std::vector<std::string>> rows = {
      {"PROFILE", "OFFLOAD", "ONLOAD", "PREPARING", "COMPUTATION", "LIMIT", "DESCRIPTION"}};
  for (const v1::Profile& profile : profiles.profiles()) {
    const v1::VramConfig& config = profile.vram_config();
    const bool is_default = profile.name() == profiles.default_profile();
    rows.push_back({profile.name() + (is_default ? " *" : ""), Station(config.offload_dtype(), config.offload_device()),
                    Station(config.onload_dtype(), config.onload_device()),
                    Station(config.preparing_dtype(), config.preparing_device()),
                    Station(config.computation_dtype(), config.computation_device()),
                    profile.has_vram_limit_gib() ? absl::StrCat(profile.vram_limit_gib(), " GiB") : "budget",
                    profile.description()});
  }
  return Table(rows) + "* for requests that name none\n";
}

std::string Describe(const v1::ListModelsResponse& models) {
  std::vector<std::vector<std::string>> rows = {
      {"MODEL", "TYPE", "BLOCKS", "PARAMETERS", "STORED", "NUMERICS", "STATE"}};
  for (const v1::Model& model : models.models()) {
    rows.push_back({model.name(), model.type(), absl::StrCat(model.blocks()),
                    absl::StrFormat("%.2f B", 1e-9 * static_cast<double>(model.parameters())),
                    Bytes(model.stored_bytes()),
                    absl::AsciiStrToLower(absl::StripPrefix(v1::Numerics_Name(model.numerics()), "NUMERICS_")),
                    model.state() == v1::MODEL_STATE_READY ? "ready" : "loading"});
  }
  return Table(rows);
}

std::string DescribeModules(const v1::GetModelResponse& model) {
  std::vector<std::vector<std::string>> rows = {{"MODULE", "TYPE", "PARAMETERS", "TIERS"}};
  for (const v1::Module& module : model.modules()) {
    std::vector<std::string> parameters;
    for (const v1::Parameter& parameter : module.parameters()) {
      parameters.push_back(
          absl::StrCat(parameter.name(), " ", ShapeText(parameter.shape()), " ", DTypeName(parameter.dtype())));
    }
    std::vector<std::string> tiers;
    for (int i = 0; i < module.tiers_size(); ++i) tiers.push_back(TierName(module.tiers(i)));
    rows.push_back({module.path(), module.type(), absl::StrJoin(parameters, ", "), absl::StrJoin(tiers, ", ")});
  }
  return Table(rows);
}

}  // namespace ditserve::ditctl
