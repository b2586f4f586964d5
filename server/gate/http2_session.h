#ifndef DITSERVE_SERVER_GATE_HTTP2_SESSION_H_
#define DITSERVE_SERVER_GATE_HTTP2_SESSION_H_

#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "server/gate/byte_stream.h"

namespace ditserve {

using Headers = std::vector<std::pair<std::string, std::string>>;

// For nghttp2, which copies them. They point into `headers`.
std::vector<nghttp2_nv> ToNghttp2(const Headers& headers);

// nghttp2's engine of one side of HTTP/2, fed from a stream of bytes and written to it. What it finds it tells by its
// callbacks, in which nothing may be sent but by nghttp2_submit_*.
//
// Thread safety: thread-compatible. Ownership: what is under way holds `owner`, and so the session that is part of it.
class Http2Session {
 public:
  enum class Side { kServer, kClient };

  struct Events {
    // Bytes came or went: there may be something to flush.
    std::function<void()> moved;
    // Told once: nothing more will come or go, and the connection is to be given up.
    std::function<void()> ended;
  };

  Http2Session(Side side, std::unique_ptr<ByteStream> bytes, const nghttp2_session_callbacks* callbacks,
               void* user_data, std::weak_ptr<void> owner, Events events);

  nghttp2_session* get() const { return session_.get(); }

  // Greets the other side with `settings`, then reads until the end.
  void Start(const std::vector<nghttp2_settings_entry>& settings);
  // Starts to write what was submitted; false where there is nothing, or something is being written still.
  bool Flush();
  void Close();

  bool is_writing() const { return is_writing_; }
  // In all.
  uint64_t bytes_read() const { return bytes_read_; }
  uint64_t bytes_written() const { return bytes_written_; }

 private:
  struct Free {
    void operator()(nghttp2_session* session) const { nghttp2_session_del(session); }
  };

  void Read();
  void End();

  const std::weak_ptr<void> owner_;
  const std::unique_ptr<ByteStream> bytes_;
  const Events events_;
  std::unique_ptr<nghttp2_session, Free> session_;
  std::string output_;
  bool has_begun_ = false;  // The handshake is done.
  bool has_ended_ = false;
  bool is_writing_ = false;
  uint64_t bytes_read_ = 0, bytes_written_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_HTTP2_SESSION_H_
