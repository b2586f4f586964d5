#ifndef DITSERVE_TESTS_SERVER_GATE_GRPC_DOUBLE_H_
#define DITSERVE_TESTS_SERVER_GATE_GRPC_DOUBLE_H_

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/gate/byte_stream.h"
#include "server/gate/http2_session.h"

namespace ditserve {

// Stands for the gRPC server behind a connection. It keeps what comes, answers as it is told to, and is stricter than
// gRPC: `fault` tells what nobody behind the gate may ever see.
class GrpcDouble : public std::enable_shared_from_this<GrpcDouble> {
 public:
  struct Call {
    Headers headers;
    std::string request;
    bool request_ended = false;
    bool response_begun = false;
    bool response_ended = false;
    size_t unsent = 0;  // Bytes of the response.

    std::string Path() const {
      const auto path = std::find_if(headers.begin(), headers.end(), [](const auto& h) { return h.first == ":path"; });
      return path == headers.end() ? "" : path->second;
    }
  };

  void Start(Socket socket) {
    session_ = std::make_unique<Http2Session>(
        Http2Session::Side::kServer, MakePlainStream(std::move(socket), asio::buffer(input_)), Callbacks(), this,
        weak_from_this(), Http2Session::Events{[this] { session_->Flush(); }, [] {}});
    session_->Start({});
  }
  void Close() { session_->Close(); }

  // Those whose streams are open, by stream.
  std::map<int32_t, Call>& calls() { return calls_; }
  int calls_seen() const { return calls_seen_; }
  const std::string& fault() const { return fault_; }

  // Sends so many bytes of the response; its headers are the first time's, its trailers the last's.
  void Respond(int32_t id, size_t bytes, bool is_last) {
    Call& call = calls_.at(id);
    if (call.response_ended) return;
    call.unsent += bytes;
    call.response_ended = is_last;
    if (std::exchange(call.response_begun, true)) {
      nghttp2_session_resume_data(session_->get(), id);
    } else {
      const std::vector<nghttp2_nv> headers = ToNghttp2(kHeaders);
      const nghttp2_data_provider response = {{.ptr = nullptr}, Take};
      nghttp2_submit_response(session_->get(), id, headers.data(), headers.size(), &response);
    }
    session_->Flush();
  }

  // Answers with an error at once.
  void RespondWithError(int32_t id) {
    Call& call = calls_.at(id);
    if (std::exchange(call.response_begun, true)) return;
    call.response_ended = true;
    Headers headers = kHeaders;
    headers.insert(headers.end(), kTrailers.begin(), kTrailers.end());
    const std::vector<nghttp2_nv> response = ToNghttp2(headers);
    nghttp2_submit_response(session_->get(), id, response.data(), response.size(), nullptr);
    session_->Flush();
  }

  void Reset(int32_t id, uint32_t error_code) {
    nghttp2_submit_rst_stream(session_->get(), NGHTTP2_FLAG_NONE, id, error_code);
    session_->Flush();
  }

  void GoAway() {
    nghttp2_submit_goaway(session_->get(), NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(session_->get()),
                          NGHTTP2_NO_ERROR, nullptr, 0);
    session_->Flush();
  }

 private:
  inline static const Headers kHeaders = {{":status", "200"}, {"content-type", "application/grpc"}};
  inline static const Headers kTrailers = {{"grpc-status", "0"}};

  static GrpcDouble& Self(void* user_data) { return *static_cast<GrpcDouble*>(user_data); }

  static int OnHeader(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_bytes,
                      const uint8_t* value, size_t value_bytes, uint8_t, void* user_data) {
    GrpcDouble& self = Self(user_data);
    const auto text = [](const uint8_t* data, size_t bytes) {
      return std::string(reinterpret_cast<const char*>(data), bytes);
    };
    Headers& headers = self.calls_[frame->hd.stream_id].headers;
    headers.emplace_back(text(name, name_bytes), text(value, value_bytes));
    if (headers.back().first == "authorization") self.fault_ = "a token was passed on";
    return 0;
  }

  static int OnFrame(nghttp2_session*, const nghttp2_frame* frame, void* user_data) {
    GrpcDouble& self = Self(user_data);
    if (frame->hd.type == NGHTTP2_HEADERS) ++self.calls_seen_;
    const bool is_last = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
    if ((frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) && is_last) {
      self.calls_[frame->hd.stream_id].request_ended = true;
    }
    return 0;
  }

  static int OnInvalidFrame(nghttp2_session*, const nghttp2_frame* frame, int error, void* user_data) {
    Self(user_data).fault_ = absl::StrCat("frame of type ", frame->hd.type, ": ", nghttp2_strerror(error));
    return 0;
  }

  static int OnData(nghttp2_session* session, uint8_t, int32_t id, const uint8_t* data, size_t bytes, void* user_data) {
    Self(user_data).calls_[id].request.append(reinterpret_cast<const char*>(data), bytes);
    return nghttp2_session_consume(session, id, bytes);
  }

  static int OnClosed(nghttp2_session*, int32_t id, uint32_t, void* user_data) {
    Self(user_data).calls_.erase(id);
    return 0;
  }

  static ssize_t Take(nghttp2_session* session, int32_t id, uint8_t* out, size_t most, uint32_t* flags,
                      nghttp2_data_source*, void* user_data) {
    Call& call = Self(user_data).calls_[id];
    const size_t bytes = std::min(most, call.unsent);
    std::fill_n(out, bytes, 'r');
    call.unsent -= bytes;
    if (call.unsent > 0 || !call.response_ended) {
      return bytes > 0 ? static_cast<ssize_t>(bytes) : ssize_t{NGHTTP2_ERR_DEFERRED};
    }
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    const std::vector<nghttp2_nv> trailers = ToNghttp2(kTrailers);
    nghttp2_submit_trailer(session, id, trailers.data(), trailers.size());
    return static_cast<ssize_t>(bytes);
  }

  static const nghttp2_session_callbacks* Callbacks() {
    static const nghttp2_session_callbacks* const callbacks = [] {
      nghttp2_session_callbacks* made = nullptr;
      nghttp2_session_callbacks_new(&made);
      nghttp2_session_callbacks_set_on_header_callback(made, OnHeader);
      nghttp2_session_callbacks_set_on_frame_recv_callback(made, OnFrame);
      nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(made, OnInvalidFrame);
      nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, OnData);
      nghttp2_session_callbacks_set_on_stream_close_callback(made, OnClosed);
      return made;
    }();
    return callbacks;
  }

  std::array<uint8_t, 16 << 10> input_;
  std::unique_ptr<Http2Session> session_;
  std::map<int32_t, Call> calls_;
  int calls_seen_ = 0;
  std::string fault_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_SERVER_GATE_GRPC_DOUBLE_H_
