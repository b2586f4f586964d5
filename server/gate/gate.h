#ifndef DITSERVE_SERVER_GATE_GATE_H_
#define DITSERVE_SERVER_GATE_GATE_H_

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "core/base/doorbell.h"
#include "core/base/executor.h"
#include "server/gate/access.h"
#include "server/gate/doorman.h"
#include "server/gate/figures.h"
#include "server/gate/http2_session.h"
#include "server/gate/timeouts.h"
#include "server/gate/tls_certificates.h"

namespace ditserve {

class Door;

// An address, and what is let in there.
struct DoorOptions {
  std::string name;     // "clients"; what figures call it.
  std::string address;  // As Listener::Open takes it.
  Methods methods;
  DoorLimits limits;
  bool tls = false;
  bool asks_for_tokens = false;
};

struct GateOptions {
  std::vector<DoorOptions> doors;
  TlsFiles tls;                           // Of the doors that have it.
  const AccessControl* access = nullptr;  // Null: no door asks for tokens. Must outlive the gate.
  GateTimeouts timeouts;
  // Hands one end of a pair of connected sockets to the gRPC server, which closes it. Thread-safe.
  std::function<void(int descriptor)> connect_server;
  // The trailers that tell a client of an error. Thread-safe.
  std::function<Headers(const absl::Status&)> trailers;
};

// What stands before gRPC: listens, speaks TLS, asks for tokens, and keeps to limits of connections, calls, bytes of
// messages and time, whatever clients do with HTTP/2. gRPC sees sockets of this process alone.
//
// Thread safety: thread-safe; it has one thread of its own.
class Gate {
 public:
  // Listens. Errors: as Listener::Open and TlsCertificates::Open.
  static absl::StatusOr<std::unique_ptr<Gate>> Open(GateOptions options, const Clock* clock);
  ~Gate();

  // With the port that was chosen, of the n-th door.
  const std::string& address(size_t n) const;
  GateFigures Figures() const;

  // Tells clients to take their calls elsewhere, and goes on serving those that they make all the same.
  void Drain();
  // Takes no new connection, gives the calls under way `grace` to end, then closes all.
  void Shutdown(absl::Duration grace);

 private:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  explicit Gate(GateOptions options);

  void Tick();
  void CountConnections();
  void ReturnMemory();

  const GateOptions options_;
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  std::unique_ptr<TlsCertificates> certificates_;
  std::vector<std::unique_ptr<Door>> doors_;
  asio::steady_timer timer_{io_};
  bool is_stopping_ = false, is_closed_ = false;
  Doorbell emptied_;                       // Stopping, and every connection is closed.
  std::atomic<int64_t> certificate_ends_;  // Seconds of Unix' time; kNever without TLS.
  int64_t most_bytes_ = 0;                 // Of messages and connections, since memory was returned.
  Executor trimmer_;  // Takes a tenth of a second and more: neither the gate nor its calls wait for it.
  std::thread thread_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_GATE_H_
