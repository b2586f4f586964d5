#ifndef DITSERVE_SERVER_GATE_CALL_H_
#define DITSERVE_SERVER_GATE_CALL_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "server/gate/doorman.h"
#include "server/gate/http2_session.h"
#include "server/gate/message_walk.h"

namespace ditserve {

// Bytes on their way from one side to the other.
class PassingBytes {
 public:
  void Append(const uint8_t* data, size_t bytes) { bytes_.append(reinterpret_cast<const char*>(data), bytes); }
  // Copies what fits of what there is before the offset `end` of the whole stream of bytes.
  size_t Take(uint8_t* out, size_t most, uint64_t end);
  // The bytes at an offset of the whole stream, if all of them are here.
  std::optional<const uint8_t*> Find(uint64_t offset, size_t bytes) const;
  void Clear() { *this = PassingBytes(); }

  uint64_t received() const { return taken_ + (bytes_.size() - head_); }
  uint64_t taken() const { return taken_; }
  bool empty() const { return head_ == bytes_.size(); }

 private:
  std::string bytes_;
  size_t head_ = 0;     // Where what is not taken yet begins.
  uint64_t taken_ = 0;  // In all.
};

// One call on its way through the gate: a stream of the client's connection, and one of the server's.
struct Call {
  int32_t client_id = 0;
  int32_t server_id = 0;  // 0: not open there, not yet or not any more.
  bool was_opened = false;

  Headers headers;          // That are being read: the request's, later the response's.
  size_t header_bytes = 0;  // Of the request.
  std::optional<Doorman::Call> admitted;
  bool is_work = false;  // It was let in, and is no probe.
  bool is_refused = false;

  PassingBytes request;
  uint64_t counted = 0;             // Bytes of the request up to the end of the last message that was counted.
  uint64_t walked = 0;              // Bytes of the request that have been looked at.
  std::optional<MessageWalk> walk;  // Of that message.
  bool request_ended = false;
  std::optional<absl::Duration> waits_since;  // For room for its message.

  PassingBytes response;
  Headers trailers;
  bool response_begun = false;
  bool response_ended = false;

  // A message of so many bytes behind its prefix is counted, and next.
  void BeginMessage(size_t prefix_bytes, int64_t bytes);
  // Looks at what has come of it. Errors: as MessageWalk.
  absl::Status Walk();

  // Nobody wants more of the request.
  bool is_over() const { return is_refused || (was_opened && server_id == 0); }

  absl::Duration progress;  // When bytes last came or went.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_CALL_H_
