#ifndef DITSERVE_SERVER_GATE_DOOR_H_
#define DITSERVE_SERVER_GATE_DOOR_H_

#include <array>
#include <asio/io_context.hpp>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/gate/connection.h"
#include "server/gate/gate.h"
#include "server/gate/listener.h"
#include "server/gate/turns.h"

namespace ditserve {

// The connections of one address.
//
// Thread safety: thread-compatible, but for Figures and address. Ownership: what it is given must outlive it.
class Door {
 public:
  // `certificates`: null without TLS. `changed` is called when a connection has closed. Errors: as Listener::Open.
  static absl::StatusOr<std::unique_ptr<Door>> Open(asio::io_context& io, const DoorOptions& door,
                                                    const GateOptions& gate, const TlsCertificates* certificates,
                                                    const Clock* clock, std::function<void()> changed);

  const std::string& address() const { return address_; }
  DoorFigures Figures() const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t connections() const { return connections_.size(); }

  void Start();
  void Tick();
  // Connections, those to come too, are told to take their calls elsewhere, and close when those under way have ended.
  void Drain();
  // Takes no new connection.
  void StopListening() { listener_->Close(); }
  void Close();

 private:
  Door(asio::io_context& io, const DoorOptions& door, const GateOptions& gate, const TlsCertificates* certificates,
       const Clock* clock, std::function<void()> changed);

  void Accept(Socket socket);
  // One that has had no call, else the one that has had none for longest; null where each has one.
  std::shared_ptr<Connection> IdleLongest() const;
  absl::StatusOr<std::unique_ptr<ByteStream>> ConnectServer();
  void RetryMessages();
  // Connections come and go while each is asked.
  template <typename Ask>
  void Each(Ask ask);
  void Count();

  asio::io_context& io_;
  const GateOptions& gate_;
  const int max_connections_;
  const TlsCertificates* const certificates_;
  const std::function<void()> changed_;
  Doorman doorman_;
  Turns handshakes_;
  // Of every stream without TLS. Half a socket's buffer: each read wakes gRPC, or the client.
  std::array<uint8_t, 64 << 10> input_;
  std::minstd_rand random_{std::random_device()()};
  ConnectionHost host_;
  std::unique_ptr<Listener> listener_;
  bool is_draining_ = false;
  const std::string name_;
  std::string address_;
  std::set<std::shared_ptr<Connection>> connections_;
  std::atomic<int64_t> connection_count_ = 0, call_count_ = 0, message_bytes_ = 0, turned_away_ = 0;
  mutable absl::Mutex mutex_;
  std::map<absl::StatusCode, int64_t> refused_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_DOOR_H_
