// `ditctl budget`: changes a memory's budget.
#include <algorithm>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/json.h"
#include "client/ditctl/live_view.h"
#include "core/base/budget_spec.h"
#include "core/base/status_macros.h"
#include "ditserve/v1/admin_service.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(10);

struct Options {
  std::string address, memory, bytes;
  std::optional<std::string> token_file;
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

// The token that a file holds, without the line's end.
absl::StatusOr<std::string> ReadToken(const std::string& path) {
  std::ifstream file(path);
  std::string token;
  if (!std::getline(file, token)) {
    return absl::NotFoundError(absl::StrCat("--token-file: ", path, " can't be read, or is empty"));
  }
  absl::StripAsciiWhitespace(&token);
  if (token.empty() || !std::all_of(token.begin(), token.end(), absl::ascii_isgraph)) {  // gRPC would abort.
    return absl::InvalidArgumentError(absl::StrCat("--token-file: ", path, " begins with no token"));
  }
  return token;
}

}  // namespace

int Budget(const std::vector<std::string>& arguments, const Environment& environment) {
  Options options;
  options.address = environment.default_admin_address;
  CLI::App app("Changes the budget of a memory while the server serves.", "ditctl budget");
  app.add_option("MEMORY", options.memory, "host, device, or a device's name: cuda:1")->type_name("");
  AddFlag(app, "bytes", "BYTES", "the new budget: 4GiB, 512MiB, or a share of the memory: 60%", &options.bytes);
  AddFlag(app, "address", "ADDRESS", "host:port or unix:/path of the server's AdminService", &options.address);
  AddFlag(app, "token-file", "FILE", "holds the token that the server asks for", &options.token_file);
  app.add_flag("--json", options.json, "prints the memory after the change as JSON");
  if (const std::optional<int> ended = Parse(app, arguments, environment)) return *ended;
  const absl::StatusOr<v1::SetBudgetRequest> request = MakeRequest(options);
  if (!request.ok()) return Fail(request.status(), environment);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
  if (options.token_file) {
    const absl::StatusOr<std::string> token = ReadToken(*options.token_file);
    if (!token.ok()) return Fail(token.status(), environment);
    context.AddMetadata("authorization", absl::StrCat("Bearer ", *token));
  }
  const CancelOnInterrupt interrupt(context, environment);
  v1::SetBudgetResponse response;
  const grpc::Status status =
      v1::AdminService::NewStub(Connect(options.address))->SetBudget(&context, *request, &response);
  if (!status.ok()) return Fail(status, options.address, environment);
  environment.out << (options.json ? ToJson(response) : DescribeBudget(response.memory()));
  return kOk;
}

}  // namespace ditserve::ditctl
