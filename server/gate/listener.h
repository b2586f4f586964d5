#ifndef DITSERVE_SERVER_GATE_LISTENER_H_
#define DITSERVE_SERVER_GATE_LISTENER_H_

#include <asio/basic_socket_acceptor.hpp>
#include <asio/generic/stream_protocol.hpp>
#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/gate/byte_stream.h"

namespace ditserve {

// Takes connections at one address. When there are no descriptors left it waits for some.
//
// Thread safety: thread-compatible. Ownership: `io` must outlive it.
class Listener {
 public:
  // `address`: "host:port", port 0: any that is free; "unix:/path". A socket file that nobody listens on is replaced.
  // Errors: InvalidArgument for an address that can't be used; Unavailable for one that is in use or not to be had
  // here.
  static absl::StatusOr<std::unique_ptr<Listener>> Open(asio::io_context& io, const std::string& address);
  ~Listener() { RemoveSocketFile(); }

  // Where clients find it, with the port that was chosen.
  const std::string& address() const { return address_; }

  // `accepted` is called on the io's thread until it is closed.
  void Start(std::function<void(Socket)> accepted);
  void Close();

 private:
  struct Acceptor {
    explicit Acceptor(asio::io_context& io) : socket(io), pause(io) {}

    asio::basic_socket_acceptor<asio::generic::stream_protocol> socket;
    asio::steady_timer pause;
  };

  Listener(std::string address, std::vector<Acceptor> acceptors)
      : address_(std::move(address)), acceptors_(std::move(acceptors)) {}

  static absl::StatusOr<std::unique_ptr<Listener>> OpenUnix(asio::io_context& io, const std::string& path);
  static absl::StatusOr<std::unique_ptr<Listener>> OpenTcp(asio::io_context& io, const std::string& host,
                                                           const std::string& port);
  void Accept(Acceptor& acceptor);
  void RemoveSocketFile();

  std::string address_;
  std::string socket_file_;
  std::vector<Acceptor> acceptors_;
  std::function<void(Socket)> accepted_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_LISTENER_H_
