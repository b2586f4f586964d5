#ifndef DITSERVE_CLIENT_DITCTL_SERVER_ACCESS_H_
#define DITSERVE_CLIENT_DITCTL_SERVER_ACCESS_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "core/base/flags.h"

namespace ditserve::ditctl {

// Where a server is, whom it is believed to be, and who asks.
class ServerAccess {
 public:
  explicit ServerAccess(std::string default_address) : address_(std::move(default_address)) {}

  // `what` listens there.
  void AddFlags(CLI::App& app, const std::string& what);
  // Reads the files that the flags name. Errors: NotFound, InvalidArgument.
  absl::Status Load();

  const std::string& address() const { return address_; }
  // A channel without the client's default limit of 4 MiB a message.
  std::shared_ptr<grpc::Channel> Connect() const;
  // Every call but health's needs it.
  void Authorize(grpc::ClientContext& context) const;

 private:
  std::string address_;
  bool tls_ = false;
  std::optional<std::string> ca_file_, certificate_file_, key_file_, token_file_;
  std::string ca_, certificate_, key_, token_;
};

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_SERVER_ACCESS_H_
