// `ditctl budget`: changes a memory's budget.
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/json.h"
#include "client/ditctl/live_view.h"
#include "core/base/budget_spec.h"
#include "ditserve/v1/admin_service.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(10);

struct Options {
  std::string memory, bytes;
  bool json = false;
};

// A memory is "host", "device", or a device's name.
absl::StatusOr<v1::SetBudgetRequest> MakeRequest(const Options& options) {
  v1::SetBudgetRequest request;
  if (options.memory == "host") {
    request.set_tier(v1::TIER_HOST);
  } else if (options.memory == "device" || options.memory == "cpu" || absl::StartsWith(options.memory, "cuda:")) {
    request.set_tier(v1::TIER_DEVICE);
    if (options.memory != "device") request.set_device(options.memory);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("MEMORY: expected host, device, or a device's name, found '", options.memory, "'"));
  }
  const std::optional<BudgetSpec> budget = ParseBudget(options.bytes);
  if (!budget) {
    return absl::InvalidArgumentError(absl::StrCat("--bytes: ", kBudgetForm, ", found '", options.bytes, "'"));
  }
  if (budget->bytes) {
    request.set_bytes(*budget->bytes);
  } else {
    request.set_share(budget->share);
  }
  return request;
}

}  // namespace

int Budget(const std::vector<std::string>& arguments, const Environment& environment) {
  Options options;
  ServerAccess server(environment.default_admin_address);
  CLI::App app("Changes the budget of a memory while the server serves.", "ditctl budget");
  app.add_option("MEMORY", options.memory, "host, device, or a device's name: cuda:1")->type_name("");
  AddFlag(app, "bytes", "BYTES", "the new budget: 4GiB, 512MiB, or a share of the memory: 60%", &options.bytes);
  server.AddFlags(app, "the server's AdminService");
  app.add_flag("--json", options.json, "prints the memory after the change as JSON");
  if (const std::optional<int> ended = Parse(app, arguments, environment, &server)) return *ended;
  const absl::StatusOr<v1::SetBudgetRequest> request = MakeRequest(options);
  if (!request.ok()) return Fail(request.status(), environment);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
  server.Authorize(context);
  const CancelOnInterrupt interrupt(context, environment);
  v1::SetBudgetResponse response;
  const grpc::Status status = v1::AdminService::NewStub(server.Connect())->SetBudget(&context, *request, &response);
  if (!status.ok()) return Fail(status, server.address(), environment);
  environment.out << (options.json ? ToJson(response) : DescribeBudget(response.memory()));
  return kOk;
}

}  // namespace ditserve::ditctl
