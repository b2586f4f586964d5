// The configuration file: whatever it holds is refused at a place in the file, or is something to serve by.

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/match.h"
#include "server/config/catalogue.h"
#include "server/config/config.h"
#include "tests/fuzz/require.h"

namespace ditserve {
namespace {

void CheckBudget(const BudgetSpec& budget) {
  constexpr int64_t kMemoryBytes = int64_t{1} << 40;
  Require(!budget.bytes || *budget.bytes >= 0);
  Require(budget.share >= 0 && budget.share <= 1);
  Require(ResolveBudget(budget, kMemoryBytes) >= 0);
}

void CheckSound(const ServerConfig& config) {
  Require(config.max_receive_message_bytes > 0 && config.max_concurrent_calls > 0);
  Require(config.max_connection_age >= absl::ZeroDuration());
  Require(config.threads >= 0 && config.transfer_threads > 0);
  Require(config.max_active > 0 && config.max_queue >= 0 && config.max_side_pixels > 0 && config.max_batch > 0);
  Require(config.drain_timeout >= absl::ZeroDuration() && config.idle_release >= absl::ZeroDuration());
  CheckBudget(config.device_budget);
  CheckBudget(config.host_budget);
  for (const ModelSource& model : config.models) Require(!model.name.empty());
  const absl::StatusOr<ProfileCatalogue> catalogue = MakeCatalogue(config);
  Require(!catalogue.ok() || catalogue->profiles.size() == config.profiles.size());
}

}  // namespace
}  // namespace ditserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string yaml(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<ditserve::ServerConfig> config = ditserve::ParseConfig(yaml, "file.yaml");
  if (config.ok()) {
    ditserve::CheckSound(*config);
  } else {
    ditserve::Require(absl::IsInvalidArgument(config.status()));
    ditserve::Require(absl::StrContains(config.status().message(), "file.yaml"));
  }
  return 0;
}
