#ifndef DITSERVE_SERVER_RPC_LISTENER_H_
#define DITSERVE_SERVER_RPC_LISTENER_H_

#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ditserve {

// gRPC services on one address, reflection included.
//
// Thread safety: thread-safe. Ownership: the services must outlive it; destroying it cancels what runs.
class Listener {
 public:
  // `address`: "host:port", port 0: any that is free; "unix:path", "unix:///path".
  // Errors: InvalidArgument for an address that can't be used; Unavailable for one that is in use or not to be had
  // here.
  static absl::StatusOr<std::unique_ptr<Listener>> Start(const std::string& address, int max_receive_message_bytes,
                                                         const std::vector<grpc::Service*>& services);
  ~Listener() { Shutdown(absl::ZeroDuration()); }

  // Where clients find it, with the port that was chosen.
  const std::string& address() const { return address_; }

  // Accepts no new call, gives those under way `grace` to end, cancels the rest and waits for them.
  void Shutdown(absl::Duration grace);

 private:
  Listener(std::string address, std::unique_ptr<grpc::Server> server)
      : address_(std::move(address)), server_(std::move(server)) {}

  const std::string address_;
  const std::unique_ptr<grpc::Server> server_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_LISTENER_H_
