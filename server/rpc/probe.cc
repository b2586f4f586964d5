#include "server/rpc/probe.h"

#include <grpc/support/time.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace ditserve {
namespace {

// Where to reach what listens on all of this machine's addresses.
std::string Local(absl::string_view address) {
  if (absl::ConsumePrefix(&address, "0.0.0.0:")) return absl::StrCat("127.0.0.1:", address);
  if (absl::ConsumePrefix(&address, "[::]:")) return absl::StrCat("localhost:", address);
  return std::string(address);
}

}  // namespace

absl::Status Probe(const std::string& address, absl::Duration timeout) {
  using grpc::health::v1::HealthCheckResponse;
  const std::string local = Local(address);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // One that the environment names does not know this machine.
  const auto health = grpc::health::v1::Health::NewStub(
      grpc::CreateCustomChannel(local, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                    gpr_time_from_millis(absl::ToInt64Milliseconds(timeout), GPR_TIMESPAN)));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("readiness");
  HealthCheckResponse response;
  const grpc::Status status = health->Check(&context, request, &response);
  if (!status.ok()) return absl::UnavailableError(absl::StrCat(local, ": ", status.error_message()));
  if (response.status() == HealthCheckResponse::SERVING) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(local, ": ", HealthCheckResponse::ServingStatus_Name(response.status())));
}

}  // namespace ditserve
