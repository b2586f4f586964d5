// `ditctl top`: a live view of residency. `ditctl budget`: what it leads one to change.
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/live_view.h"
#include "ditserve/v1/residency_service.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(10);
constexpr const char* kClearScreen = "\x1b[H\x1b[2J";

// Prints each update until there were `count` (0: any number), the server ends the stream, or Ctrl-C.
grpc::Status Watch(const std::string& address, const v1::WatchResidencyRequest& request, int64_t count,
                   const Environment& environment) {
  grpc::ClientContext context;
  const CancelOnInterrupt interrupt(context, environment);
  const auto reader = v1::ResidencyService::NewStub(Connect(address))->WatchResidency(&context, request);
  LiveView view;
  v1::WatchResidencyResponse update;
  for (int64_t shown = 0; (count == 0 || shown < count) && reader->Read(&update); ++shown) {
    environment.out << (environment.out_is_terminal ? kClearScreen
                        : shown > 0                 ? "\n"
                                                    : "")
                    << view.Show(update) << std::flush;
    if (shown + 1 == count) context.TryCancel();
  }
  grpc::Status status = reader->Finish();
  return status.error_code() == grpc::StatusCode::CANCELLED ? grpc::Status::OK : status;
}

// "4GiB", "512 MiB", "1073741824".
absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  double unit = 1;
  if (absl::ConsumeSuffix(&text, "KiB")) unit = 0x1p10;
  if (absl::ConsumeSuffix(&text, "MiB")) unit = 0x1p20;
  if (absl::ConsumeSuffix(&text, "GiB")) unit = 0x1p30;
  double number = 0;
  if (absl::SimpleAtod(text, &number) && number >= 0 && number * unit <= 0x1p50) {
    return static_cast<int64_t>(number * unit);
  }
  return absl::InvalidArgumentError("--bytes: expected bytes up to 2^50, with KiB, MiB or GiB");
}

}  // namespace

int Top(const std::vector<std::string>& arguments, const Environment& environment) {
  std::string address = environment.default_address;
  double interval = 1;
  int64_t count = 0;
  Flags flags("top", "Shows budgets, use, riders and transfers, live. Ctrl-C ends it.");
  flags.Add("address", "ADDRESS", "host:port or unix:/path of the server", &address);
  flags.Add("interval-seconds", "S", "between updates (default 1)", &interval);
  flags.Add("count", "N", "ends after so many updates (default: never)", &count);
  const absl::Status parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Fail(parsed, environment);
  if (flags.help()) {
    environment.out << flags.Usage();
    return kOk;
  }
  if (!(interval >= 0 && interval <= 1e6)) {
    return Fail(absl::InvalidArgumentError("--interval-seconds: expected 0.1 to 60"), environment);
  }
  v1::WatchResidencyRequest request;
  const absl::Duration duration = absl::Seconds(interval);
  request.mutable_interval()->set_seconds(absl::ToInt64Seconds(duration));
  request.mutable_interval()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(duration - absl::Floor(duration, absl::Seconds(1)))));
  const grpc::Status status = Watch(address, request, count, environment);
  return status.ok() ? kOk : Fail(status, address, environment);
}

int Budget(const std::vector<std::string>& arguments, const Environment& environment) {
  std::string address = environment.default_address, bytes;
  v1::SetBudgetRequest request;
  Flags flags("budget", "Changes the budget of a memory while the server serves.");
  flags.AddPositional("MEMORY", request.mutable_memory());
  flags.Add("bytes", "BYTES", "the new budget: 4GiB, 512MiB", &bytes);
  flags.Add("address", "ADDRESS", "host:port or unix:/path of the server", &address);
  const absl::Status parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Fail(parsed, environment);
  if (flags.help()) {
    environment.out << flags.Usage();
    return kOk;
  }
  const absl::StatusOr<int64_t> budget = ParseBytes(bytes);
  if (!budget.ok()) return Fail(budget.status(), environment);
  request.set_budget_bytes(*budget);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
  v1::SetBudgetResponse response;
  const grpc::Status status = v1::ResidencyService::NewStub(Connect(address))->SetBudget(&context, request, &response);
  if (!status.ok()) return Fail(status, address, environment);
  environment.out << DescribeBudget(response.memory());
  return kOk;
}

}  // namespace ditserve::ditctl
