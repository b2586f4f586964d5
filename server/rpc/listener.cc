#include "server/rpc/listener.h"

#include <grpc/support/time.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// Threads of gRPC's that may block in a handler. Only reflection has such handlers.
constexpr int kMaxThreads = 8;

// The path of a unix socket's address, as gRPC reads it; empty for other addresses.
absl::string_view UnixPath(absl::string_view address) {
  if (!absl::ConsumePrefix(&address, "unix:")) return "";
  absl::ConsumePrefix(&address, "//");
  return address;
}

// Whether a server accepts connections on the socket.
absl::StatusOr<bool> AcceptsConnections(absl::string_view path) {
  sockaddr_un name = {};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof(name.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the socket's path has ", path.size(), " bytes, expected at most ", sizeof(name.sun_path) - 1));
  }
  std::memcpy(name.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::UnavailableError(absl::StrCat("socket: ", std::strerror(errno)));
  const bool connected = connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0;
  close(fd);
  return connected;
}

// gRPC removes whatever socket stands at the path: refuse to take one from a server that still uses it.
absl::Status CheckUnixSocket(absl::string_view path) {
  struct stat info;
  if (lstat(std::string(path).c_str(), &info) != 0) return absl::OkStatus();
  if (!S_ISSOCK(info.st_mode)) return absl::InvalidArgumentError("what stands there is no socket");
  DITSERVE_ASSIGN_OR_RETURN(const bool in_use, AcceptsConnections(path));
  return in_use ? absl::UnavailableError("another server is listening") : absl::OkStatus();
}

void Configure(int max_receive_message_bytes, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(max_receive_message_bytes);
  builder.SetMaxSendMessageSize(-1);
  builder.SetResourceQuota(grpc::ResourceQuota("ditserve").SetMaxThreads(kMaxThreads));
  // Two servers on one port would share its clients.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A forward pass can be silent for minutes: find dead clients, and let clients see that this side lives.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
}

// gRPC keeps a list of plugins for every server of the process.
void EnableReflection() {
  static const bool enabled = [] {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  static_cast<void>(enabled);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Listener>> Listener::Start(const std::string& address, int max_receive_message_bytes,
                                                          const std::vector<grpc::Service*>& services) {
  const auto refuse = [&](const absl::Status& why) {
    return absl::Status(why.code(), absl::StrCat("cannot listen on ", address, ": ", why.message()));
  };
  const absl::string_view unix_path = UnixPath(address);
  if (!unix_path.empty()) {
    const absl::Status usable = CheckUnixSocket(unix_path);
    if (!usable.ok()) return refuse(usable);
  }
  EnableReflection();
  grpc::ServerBuilder builder;
  Configure(max_receive_message_bytes, builder);
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return refuse(absl::UnavailableError("the address is in use, not one of this machine's, or no address"));
  }
  const bool has_port = !absl::StartsWith(address, "unix");
  return absl::WrapUnique(new Listener(
      has_port ? absl::StrCat(address.substr(0, address.rfind(':') + 1), port) : address, std::move(server)));
}

void Listener::Shutdown(absl::Duration grace) {
  const gpr_timespec now = gpr_now(GPR_CLOCK_MONOTONIC);
  server_->Shutdown(grace == absl::InfiniteDuration()
                        ? gpr_inf_future(GPR_CLOCK_MONOTONIC)
                        : gpr_time_add(now, gpr_time_from_millis(absl::ToInt64Milliseconds(grace), GPR_TIMESPAN)));
}

}  // namespace ditserve
