#include "client/ditctl/server_access.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve::ditctl {
namespace {

constexpr int kMaxReconnectMs = 500;

absl::Status Read(const char* flag, const std::optional<std::string>& path, std::string& text) {
  if (!path) return absl::OkStatus();
  std::ifstream file(*path);
  std::ostringstream read;
  read << file.rdbuf();  // Of a folder, or where nothing can be read, nothing.
  text = read.str();
  if (!text.empty()) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(flag, ": ", *path, " can't be read, or is empty"));
}

}  // namespace

void ServerAccess::AddFlags(CLI::App& app, const std::string& what) {
  AddFlag(app, "address", "ADDRESS", "host:port or unix:/path of " + what, &address_);
  app.add_flag("--tls", tls_, "connects under TLS, and believes the authorities that this machine does");
  AddFlag(app, "ca", "FILE", "connects under TLS, and believes these authorities alone (PEM)", &ca_file_);
  AddFlag(app, "certificate", "FILE", "the client's own, where the server asks for one (PEM)", &certificate_file_);
  AddFlag(app, "private-key", "FILE", "its key (PEM)", &key_file_);
  AddFlag(app, "token-file", "FILE", "holds the token that the server asks for", &token_file_);
}

absl::Status ServerAccess::Load() {
  DITSERVE_RETURN_IF_ERROR(Read("--ca", ca_file_, ca_));
  DITSERVE_RETURN_IF_ERROR(Read("--certificate", certificate_file_, certificate_));
  DITSERVE_RETURN_IF_ERROR(Read("--private-key", key_file_, key_));
  DITSERVE_RETURN_IF_ERROR(Read("--token-file", token_file_, token_));
  if (certificate_.empty() != key_.empty()) {
    return absl::InvalidArgumentError("--certificate and --private-key: expected both or neither");
  }
  tls_ |= !ca_.empty();
  if (!certificate_.empty() && !tls_) return absl::InvalidArgumentError("--certificate: expected --tls or --ca too");
  if (!token_file_) return absl::OkStatus();
  token_.resize(std::min(token_.find('\n'), token_.size()));
  absl::StripAsciiWhitespace(&token_);
  if (token_.empty() || !std::all_of(token_.begin(), token_.end(), absl::ascii_isgraph)) {  // gRPC would abort.
    return absl::InvalidArgumentError(absl::StrCat("--token-file: ", *token_file_, " begins with no token"));
  }
  return absl::OkStatus();
}

std::shared_ptr<grpc::Channel> ServerAccess::Connect() const {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  // gRPC would wait up to two minutes before it looks again for a server that is starting.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  return grpc::CreateCustomChannel(
      address_, tls_ ? grpc::SslCredentials({ca_, key_, certificate_}) : grpc::InsecureChannelCredentials(), arguments);
}

void ServerAccess::Authorize(grpc::ClientContext& context) const {
  if (!token_.empty()) context.AddMetadata("authorization", absl::StrCat("Bearer ", token_));
}

}  // namespace ditserve::ditctl
