#ifndef DITSERVE_CLIENT_DITCTL_CLIENT_H_
#define DITSERVE_CLIENT_DITCTL_CLIENT_H_

#include <grpcpp/client_context.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/server_access.h"
#include "core/base/flags.h"
#include "ditserve/v1/residency.pb.h"

namespace ditserve::ditctl {

// Asks where every byte is.
grpc::Status GetResidency(const ServerAccess& server, grpc::ClientContext& context, v1::Residency& residency);

// Parses the arguments of a command. What it returns is its exit code: they are wrong, or ask for help, which is
// printed, or name files for `server` that can't be used.
std::optional<int> Parse(CLI::App& app, const std::vector<std::string>& arguments, const Environment& environment,
                         ServerAccess* server = nullptr);

// Prints an error of usage or of a file; returns the exit code: of usage also where a file that is named is missing.
int Fail(const absl::Status& status, const Environment& environment);
// Prints the error of a call; returns the exit code.
int Fail(const grpc::Status& status, const std::string& address, const Environment& environment);

// Cancels `context` when Ctrl-C was pressed, as long as it lives.
class CancelOnInterrupt {
 public:
  CancelOnInterrupt(grpc::ClientContext& context, const Environment& environment);
  ~CancelOnInterrupt();

 private:
  class Watch;
  std::unique_ptr<Watch> watch_;
};

// Waits until the server's readiness is SERVING. Errors: DeadlineExceeded after `timeout`; FailedPrecondition if what
// listens there tells no readiness; Cancelled when interrupted.
absl::Status WaitUntilReady(const ServerAccess& server, absl::Duration timeout, const Environment& environment);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_CLIENT_H_
