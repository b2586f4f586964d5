#ifndef DITSERVE_SERVER_GATE_CONNECTION_H_
#define DITSERVE_SERVER_GATE_CONNECTION_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "server/gate/byte_stream.h"
#include "server/gate/call.h"
#include "server/gate/doorman.h"
#include "server/gate/http2_session.h"
#include "server/gate/timeouts.h"

namespace ditserve {

// What a connection needs of the gate. Must outlive it.
struct ConnectionHost {
  Doorman* doorman = nullptr;
  const Clock* clock = nullptr;
  GateTimeouts timeouts;
  // The gate's end of a new connection to the gRPC server. Errors: Unavailable.
  std::function<absl::StatusOr<std::unique_ptr<ByteStream>>()> connect_server;
  // The trailers that tell a client of an error.
  std::function<Headers(const absl::Status&)> trailers;
  // A call was answered with an error of the gate's.
  std::function<void(const absl::Status&)> refused;
  // Bytes of messages were given back.
  std::function<void()> bytes_freed;
  // From 0 to 1: so that clients which came together do not go together.
  std::function<double()> random;
};

// A client's connection, and the one to the gRPC server that its calls go on by; that one is there from the first call
// that is let in. A call goes on when the length of its message is known and counted, so that a client that opens
// streams and resets them, or sends what is too much, never reaches gRPC; and its slot is given back when the server
// has seen it end, of a client that has gone too.
//
// Thread safety: thread-compatible: all of it happens on the gate's thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(const ConnectionHost* host, std::function<void()> closed)
      : host_(*host),
        closed_(std::move(closed)),
        born_(host->clock->Now()),
        most_age_(host->timeouts.connection_age * (0.9 + 0.2 * host->random())) {}

  void Start(std::unique_ptr<ByteStream> client);
  // Asks the doorman again for calls whose messages wait for room.
  void Retry();
  // Ends what has waited too long.
  void Tick();
  // Takes no new call; closes when those under way have ended.
  void Drain();
  // Whether there has been a call, and since when there is none; null while there is one. Probes, and what was refused
  // as it came, are no calls here.
  using Idleness = std::pair<bool, absl::Duration>;
  std::optional<Idleness> Idle() const;
  // Tells the client to come again, and closes.
  void Dismiss();
  // At once, whatever the server has seen.
  void Close();

 private:
  friend struct ClientEvents;
  friend struct ServerEvents;

  // nghttp2's events, of the client's side and the server's.
  Call* Begin(int32_t client_id);
  void OnRequestHeaders(Call& call);
  void OnRequestData(Call& call, const uint8_t* data, size_t bytes);
  void OnRequestEnd(Call& call);
  void OnClientClosed(int32_t client_id);
  void OnClientPong() { client_ping_sent_.reset(); }
  void OnResponseHeaders(Call& call, bool is_first, bool is_last);
  void OnResponseData(Call& call, const uint8_t* data, size_t bytes);
  void OnResponseEnd(Call& call);
  void OnServerClosed(Call& call, uint32_t error_code);
  void OnServerPong();
  // The client's side is over. The server's is closed when it has seen the end of its calls.
  void OnClientGone();

  // How much of the request the server may have, from its beginning.
  uint64_t Ready(const Call& call) const;
  // Errors: InvalidArgument where the request has ended without its message. gRPC would say that there is no such
  // method.
  static absl::Status CheckEnd(const Call& call);
  // Sends on what is counted and was looked at, and opens the call at the server if it is not.
  void PassOn(Call& call);
  void OpenAtServer(Call& call);
  // Ends the call with an error of the gate's.
  void Refuse(Call& call, const absl::Status& why);
  // The call's slot and bytes are given back; at once where the server never saw it.
  void Leave(Call& call);
  void TickCall(Call& call, absl::Duration now);
  void BeginDrain();
  // Tells which calls were the last.
  void FinishDrain();
  void Flush();

  const ConnectionHost& host_;
  std::function<void()> closed_;  // Empty once it is.
  const absl::Duration born_, most_age_;
  std::unique_ptr<Http2Session> client_, server_;
  Doorman::Probes probes_;
  std::map<int32_t, std::unique_ptr<Call>> calls_;  // By the client's stream.
  bool has_worked_ = false;
  absl::Duration idle_since_ = born_;  // When the last call ended that was work.

  bool client_has_acknowledged_ = false;  // Our settings.
  std::optional<absl::Duration> header_block_since_, client_ping_sent_;
  uint64_t known_bytes_read_ = 0, known_bytes_written_ = 0;
  absl::Duration last_read_ = born_, last_written_ = born_;
  bool is_draining_ = false, told_last_call_ = false;
  std::optional<absl::Duration> client_gone_since_;

  // Calls that the client left and that the server may be handling still: what is before a ping that it answers it has
  // seen.
  std::vector<Doorman::Call> leaving_, leaving_next_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_CONNECTION_H_
