// `ditctl top`: a live view of residency.
#include <sys/ioctl.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/json.h"
#include "client/ditctl/live_view.h"
#include "client/ditctl/quit_key.h"
#include "ditserve/v1/residency_service.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr const char* kClearScreen = "\x1b[H\x1b[2J";

// What of `text` standard output's terminal shows, whatever its size is now.
std::string FitTerminal(const std::string& text) {
  winsize size = {};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? Fit(text, size.ws_row, size.ws_col) : text;
}

// Prints each update until there were `count` (0: any number), the server ends the stream, or Ctrl-C.
grpc::Status Watch(const ServerAccess& server, const v1::WatchResidencyRequest& request, int64_t count, bool json,
                   const Environment& environment) {
  grpc::ClientContext context;
  server.Authorize(context);
  const CancelOnInterrupt interrupt(context, environment);
  const QuitKey quit(context, environment.keys);
  const auto reader = v1::ResidencyService::NewStub(server.Connect())->WatchResidency(&context, request);
  LiveView view;
  v1::WatchResidencyResponse update;
  for (int64_t shown = 0; (count == 0 || shown < count) && reader->Read(&update); ++shown) {
    if (json) {
      environment.out << ToJson(update) << std::flush;
    } else {
      environment.out << (environment.out_is_terminal ? kClearScreen
                          : shown > 0                 ? "\n"
                                                      : "")
                      << (environment.out_is_terminal ? FitTerminal(view.Show(update)) : view.Show(update))
                      << std::flush;
    }
    if (shown + 1 == count) context.TryCancel();
  }
  grpc::Status status = reader->Finish();
  return status.error_code() == grpc::StatusCode::CANCELLED ? grpc::Status::OK : status;
}

}  // namespace

int Top(const std::vector<std::string>& arguments, const Environment& environment) {
  ServerAccess server(environment.default_address);
  double interval = 1;
  int64_t count = 0;
  CLI::App app("Shows budgets, use, riders and transfers, live. q or Ctrl-C ends it.", "ditctl top");
  server.AddFlags(app, "the server");
  AddFlag(app, "interval-seconds", "S", "between updates (default 1)", &interval);
  AddFlag(app, "count", "N", "ends after so many updates (default: never)", &count);
  bool json = false;
  app.add_flag("--json", json, "prints each update as JSON");
  if (const std::optional<int> ended = Parse(app, arguments, environment, &server)) return *ended;
  if (!(interval >= 0.1 && interval <= 60)) {
    return Fail(absl::InvalidArgumentError(absl::StrCat("--interval-seconds: expected 0.1 to 60, found ", interval)),
                environment);
  }
  if (count < 0) {
    return Fail(absl::InvalidArgumentError(absl::StrCat("--count: expected 0 or more, found ", count)), environment);
  }
  v1::WatchResidencyRequest request;
  const absl::Duration duration = absl::Seconds(interval);
  request.mutable_interval()->set_seconds(absl::ToInt64Seconds(duration));
  request.mutable_interval()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(duration - absl::Floor(duration, absl::Seconds(1)))));
  const grpc::Status status = Watch(server, request, count, json, environment);
  return status.ok() ? kOk : Fail(status, server.address(), environment);
}

}  // namespace ditserve::ditctl
