#include "server/rpc/admin_service.h"

#include <spdlog/spdlog.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "core/base/budget_spec.h"
#include "core/base/error_details.h"
#include "core/base/quoted.h"
#include "core/base/size.h"
#include "core/base/status_macros.h"
#include "server/gate/access.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/metadata.h"
#include "server/rpc/residency_encoder.h"

namespace ditserve {
namespace {

absl::StatusOr<Memory> DecodeMemory(const v1::SetBudgetRequest& request, const std::vector<DeviceInfo>& devices) {
  const bool of_device = request.tier() == v1::TIER_DEVICE;
  if (!of_device && request.tier() != v1::TIER_HOST) {
    return FieldError("tier", absl::StrCat(static_cast<int>(request.tier()), ", expected TIER_DEVICE or TIER_HOST"));
  }
  const std::string& name = request.device();
  if (!of_device) {
    if (!name.empty()) return FieldError("device", "given beside TIER_HOST, expected none");
    return Memory::kHost;
  }
  if (name.empty() && devices.size() == 1) return Memory::kDevice;
  std::vector<std::string> names;
  for (const DeviceInfo& each : devices) {
    if (each.name == name) return DeviceMemory(static_cast<int>(names.size()));
    names.push_back(absl::StrCat("\"", each.name, "\""));
  }
  const std::string expected = absl::StrCat(", expected ", absl::StrJoin(names, ", "));
  if (name.empty()) return FieldError("device", absl::StrCat("not given", expected));
  return FieldError("device", absl::StrCat(Quoted(name), expected, devices.size() == 1 ? " or none" : ""),
                    absl::StatusCode::kNotFound);
}

// In bytes; a share is of `memory`.
absl::StatusOr<int64_t> DecodeBudget(const Engine& engine, Memory memory, const v1::SetBudgetRequest& request) {
  switch (request.budget_case()) {
    case v1::SetBudgetRequest::kBytes:
      if (request.bytes() >= 0 && request.bytes() <= kMaxSizeBytes) return request.bytes();
      return FieldError("bytes", absl::StrCat(request.bytes(), ", expected 0 to 2^50"));
    case v1::SetBudgetRequest::kShare: {
      const double share = request.share();
      if (!(share > 0 && share <= 1)) return FieldError("share", absl::StrCat(share, ", expected above 0 and up to 1"));
      DITSERVE_ASSIGN_OR_RETURN(const int64_t total_bytes, engine.MemoryBytes(memory));
      return ResolveBudget({.share = share}, total_bytes);
    }
    default:
      return FieldError("budget", "not given, expected bytes or share");
  }
}

}  // namespace

absl::Status AdminService::SetBudget(const v1::SetBudgetRequest& request, const std::string& caller,
                                     v1::SetBudgetResponse& response) {
  const ResidencySnapshot before = engine_.Residency();
  DITSERVE_ASSIGN_OR_RETURN(const Memory memory, DecodeMemory(request, before.devices));
  DITSERVE_ASSIGN_OR_RETURN(const int64_t bytes, DecodeBudget(engine_, memory, request));
  DITSERVE_RETURN_IF_ERROR(engine_.SetBudget(memory, bytes));
  spdlog::info("SetBudget{}: the budget of {} was {} bytes, and is {}", caller.empty() ? "" : " by " + caller,
               IsHost(memory) ? "host memory" : before.devices[static_cast<size_t>(DeviceOf(memory))].name,
               before.memory(memory).usage.wanted_bytes, bytes);
  const ResidencySnapshot now = engine_.Residency();
  if (IsHost(memory)) {
    EncodeMemory(now.host, *response.mutable_memory());
  } else {
    EncodeDeviceMemory(now.devices[static_cast<size_t>(DeviceOf(memory))], *response.mutable_memory());
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* AdminService::SetBudget(grpc::CallbackServerContext* context,
                                                  const v1::SetBudgetRequest* request,
                                                  v1::SetBudgetResponse* response) {
  return FinishCall(context, SetBudget(*request, MetadataOf(*context, kCallerHeader), *response));
}

}  // namespace ditserve
