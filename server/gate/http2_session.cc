#include "server/gate/http2_session.h"

#include <asio/buffer.hpp>
#include <utility>

namespace ditserve {
namespace {

// What is gathered for one write.
constexpr size_t kMostOutputBytes = 128 << 10;

// Frames that wait to be written. Of who keeps to the rules there are a few for each of its streams; one who sends what
// has to be answered and reads none of it has as many as it likes, before its settings are acknowledged even resets.
constexpr size_t kMostOutputFrames = 4096;

struct FreeOption {
  void operator()(nghttp2_option* option) const { nghttp2_option_del(option); }
};

std::unique_ptr<nghttp2_option, FreeOption> MakeOptions() {
  nghttp2_option* options = nullptr;
  nghttp2_option_new(&options);
  // Windows grow as messages are passed on, not as they come.
  nghttp2_option_set_no_auto_window_update(options, 1);
  // Rapid resets: a burst, then so many a second.
  nghttp2_option_set_stream_reset_rate_limit(options, 500, 50);
  // Acknowledgements that the other side does not read.
  nghttp2_option_set_max_outbound_ack(options, 100);
  nghttp2_option_set_no_closed_streams(options, 1);
  // gRPC's clients send metadata as it is given to them.
  nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(options, 1);
  return std::unique_ptr<nghttp2_option, FreeOption>(options);
}

}  // namespace

std::vector<nghttp2_nv> ToNghttp2(const Headers& headers) {
  const auto bytes = [](const std::string& text) {
    return const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(text.data()));  // It is only read.
  };
  std::vector<nghttp2_nv> pairs;
  for (const auto& [name, value] : headers) {
    pairs.push_back({bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE});
  }
  return pairs;
}

Http2Session::Http2Session(Side side, std::unique_ptr<ByteStream> bytes, const nghttp2_session_callbacks* callbacks,
                           void* user_data, std::weak_ptr<void> owner, Events events)
    : owner_(std::move(owner)), bytes_(std::move(bytes)), events_(std::move(events)) {
  const auto make = side == Side::kServer ? nghttp2_session_server_new2 : nghttp2_session_client_new2;
  nghttp2_session* session = nullptr;
  make(&session, callbacks, user_data, MakeOptions().get());
  session_.reset(session);
}

void Http2Session::Start(const std::vector<nghttp2_settings_entry>& settings) {
  nghttp2_submit_settings(get(), NGHTTP2_FLAG_NONE, settings.data(), settings.size());
  bytes_->Handshake([this, owner = owner_.lock()](asio::error_code error) {
    if (error) return End();
    has_begun_ = true;
    events_.moved();
    Read();
  });
}

void Http2Session::Read() {
  if (has_ended_) return;
  bytes_->Read([this, owner = owner_.lock()](asio::error_code error, asio::const_buffer input) {
    if (error || has_ended_) return End();
    bytes_read_ += input.size();
    const ssize_t consumed = nghttp2_session_mem_recv(get(), static_cast<const uint8_t*>(input.data()), input.size());
    events_.moved();  // Also what tells the other side why it is given up.
    if (consumed < 0 || nghttp2_session_get_outbound_queue_size(get()) > kMostOutputFrames) return End();
    Read();
  });
}

bool Http2Session::Flush() {
  if (is_writing_ || !has_begun_ || has_ended_) return false;
  output_.clear();
  while (output_.size() < kMostOutputBytes) {
    const uint8_t* chunk = nullptr;
    const ssize_t bytes = nghttp2_session_mem_send(get(), &chunk);
    if (bytes < 0) {
      End();
      return false;
    }
    if (bytes == 0) break;
    output_.append(reinterpret_cast<const char*>(chunk), static_cast<size_t>(bytes));
  }
  if (output_.empty()) {
    output_ = std::string();  // Who rests holds no memory.
    if (nghttp2_session_want_read(get()) == 0 && nghttp2_session_want_write(get()) == 0) End();
    return false;
  }
  is_writing_ = true;
  bytes_->Write(asio::buffer(output_), [this, owner = owner_.lock()](asio::error_code error, size_t bytes) {
    is_writing_ = false;
    bytes_written_ += bytes;
    if (error) return End();
    events_.moved();
  });
  return true;
}

void Http2Session::End() {
  if (!std::exchange(has_ended_, true)) events_.ended();
}

void Http2Session::Close() {
  has_ended_ = true;
  bytes_->Close();
}

}  // namespace ditserve
