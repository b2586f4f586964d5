#include "server/gate/connection_events.h"

#include <optional>
#include <string>

#include "server/gate/connection.h"

namespace ditserve {
namespace {

// Of a request's names and values, as HTTP/2 counts them. A call with more is refused; a client that goes on and on is
// given up: each repetition costs it a byte and us kilobytes.
constexpr size_t kMostHeaderBytes = 16 << 10;
constexpr size_t kAbuseHeaderBytes = 256 << 10;

using CallbacksPtr = const nghttp2_session_callbacks*;

Connection& ConnectionOf(void* user_data) { return *static_cast<Connection*>(user_data); }

// Null for streams that are over.
Call* CallOf(nghttp2_session* session, int32_t stream_id) {
  return static_cast<Call*>(nghttp2_session_get_stream_user_data(session, stream_id));
}

void KeepHeader(Call& call, const uint8_t* name, size_t name_bytes, const uint8_t* value, size_t value_bytes) {
  call.headers.emplace_back(std::string(reinterpret_cast<const char*>(name), name_bytes),
                            std::string(reinterpret_cast<const char*>(value), value_bytes));
}

bool IsLast(const nghttp2_frame& frame) { return (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) != 0; }
bool IsAcknowledgement(const nghttp2_frame& frame) { return (frame.hd.flags & NGHTTP2_FLAG_ACK) != 0; }

}  // namespace

struct ClientEvents {
  static int OnFrameBegun(nghttp2_session*, const nghttp2_frame_hd* header, void* user_data) {
    if (header->type != NGHTTP2_HEADERS && header->type != NGHTTP2_CONTINUATION) return 0;
    std::optional<absl::Duration>& since = ConnectionOf(user_data).header_block_since_;
    if ((header->flags & NGHTTP2_FLAG_END_HEADERS) != 0) {
      since.reset();  // Here, for of a block that is not wanted nothing more is told.
    } else if (!since) {
      since = ConnectionOf(user_data).host_.clock->Now();
    }
    return 0;
  }

  static int OnHeadersBegun(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) {
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    Call* const call = ConnectionOf(user_data).Begin(frame->hd.stream_id);
    return nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, call);
  }

  static int OnHeader(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_bytes,
                      const uint8_t* value, size_t value_bytes, uint8_t, void*) {
    Call* const call = CallOf(session, frame->hd.stream_id);
    if (call == nullptr) return 0;
    call->header_bytes += name_bytes + value_bytes + 32;  // RFC 9113, 6.5.2.
    if (call->header_bytes > kAbuseHeaderBytes) return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (call->header_bytes > kMostHeaderBytes) {
      call->headers.clear();
    } else if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
      KeepHeader(*call, name, name_bytes, value, value_bytes);
    }
    return 0;
  }

  static int OnFrame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) {
    Connection& connection = ConnectionOf(user_data);
    if (frame->hd.type == NGHTTP2_SETTINGS && IsAcknowledgement(*frame)) connection.client_has_acknowledged_ = true;
    if (frame->hd.type == NGHTTP2_PING && IsAcknowledgement(*frame)) connection.OnClientPong();
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) return 0;
    Call* const call = CallOf(session, frame->hd.stream_id);
    if (call == nullptr) return 0;
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
      if (call->header_bytes > kMostHeaderBytes) {
        connection.Refuse(*call, absl::ResourceExhaustedError("the request's metadata is too long"));
      } else {
        connection.OnRequestHeaders(*call);
      }
    }
    if (IsLast(*frame)) connection.OnRequestEnd(*call);
    return 0;
  }

  static int OnData(nghttp2_session* session, uint8_t, int32_t stream_id, const uint8_t* data, size_t bytes,
                    void* user_data) {
    // What bounds a connection is what bounds its streams.
    nghttp2_session_consume_connection(session, bytes);
    Call* const call = CallOf(session, stream_id);
    if (call == nullptr || call->is_over()) return nghttp2_session_consume_stream(session, stream_id, bytes);
    ConnectionOf(user_data).OnRequestData(*call, data, bytes);
    return 0;
  }

  // A client that was answered before it had sent all need send no more.
  static int OnSent(nghttp2_session* session, const nghttp2_frame* frame, void*) {
    if ((frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) && IsLast(*frame) &&
        nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0) {
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    }
    return 0;
  }

  static int OnClosed(nghttp2_session*, int32_t stream_id, uint32_t, void* user_data) {
    ConnectionOf(user_data).OnClientClosed(stream_id);
    return 0;
  }

  // Sends the response on.
  static ssize_t TakeResponse(nghttp2_session* session, int32_t stream_id, uint8_t* out, size_t most, uint32_t* flags,
                              nghttp2_data_source*, void* user_data) {
    Call* const call = CallOf(session, stream_id);
    if (call == nullptr) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    Connection& connection = ConnectionOf(user_data);
    const size_t bytes = call->response.Take(out, most, call->response.received());
    if (bytes > 0) {
      call->progress = connection.host_.clock->Now();
      if (call->server_id != 0) nghttp2_session_consume_stream(connection.server_->get(), call->server_id, bytes);
    }
    if (call->response_ended && call->response.empty()) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
      if (!call->trailers.empty()) {
        *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
        const std::vector<nghttp2_nv> trailers = ToNghttp2(call->trailers);
        nghttp2_submit_trailer(session, stream_id, trailers.data(), trailers.size());
      }
      return static_cast<ssize_t>(bytes);
    }
    return bytes > 0 ? static_cast<ssize_t>(bytes) : ssize_t{NGHTTP2_ERR_DEFERRED};
  }
};

struct ServerEvents {
  static int OnHeader(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_bytes,
                      const uint8_t* value, size_t value_bytes, uint8_t, void*) {
    Call* const call = CallOf(session, frame->hd.stream_id);
    if (call != nullptr) KeepHeader(*call, name, name_bytes, value, value_bytes);
    return 0;
  }

  static int OnFrame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) {
    Connection& connection = ConnectionOf(user_data);
    if (frame->hd.type == NGHTTP2_PING && IsAcknowledgement(*frame)) connection.OnServerPong();
    if (frame->hd.type == NGHTTP2_GOAWAY) connection.BeginDrain();
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) return 0;
    Call* const call = CallOf(session, frame->hd.stream_id);
    if (call == nullptr) return 0;
    if (frame->hd.type == NGHTTP2_HEADERS) {
      connection.OnResponseHeaders(*call, frame->headers.cat == NGHTTP2_HCAT_RESPONSE, IsLast(*frame));
    } else if (IsLast(*frame)) {
      connection.OnResponseEnd(*call);
    }
    return 0;
  }

  static int OnData(nghttp2_session* session, uint8_t, int32_t stream_id, const uint8_t* data, size_t bytes,
                    void* user_data) {
    nghttp2_session_consume_connection(session, bytes);
    Call* const call = CallOf(session, stream_id);
    if (call == nullptr) return nghttp2_session_consume_stream(session, stream_id, bytes);
    ConnectionOf(user_data).OnResponseData(*call, data, bytes);
    return 0;
  }

  static int OnClosed(nghttp2_session* session, int32_t stream_id, uint32_t error_code, void* user_data) {
    Call* const call = CallOf(session, stream_id);
    if (call != nullptr) ConnectionOf(user_data).OnServerClosed(*call, error_code);
    return 0;
  }

  // Sends on what is counted of the request.
  static ssize_t TakeRequest(nghttp2_session* session, int32_t stream_id, uint8_t* out, size_t most, uint32_t* flags,
                             nghttp2_data_source*, void* user_data) {
    Call* const call = CallOf(session, stream_id);
    if (call == nullptr) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    Connection& connection = ConnectionOf(user_data);
    const size_t bytes = call->request.Take(out, most, connection.Ready(*call));
    if (bytes > 0) {
      call->progress = connection.host_.clock->Now();
      nghttp2_session_consume_stream(connection.client_->get(), call->client_id, bytes);
    }
    if (call->request_ended && call->request.empty()) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
      return static_cast<ssize_t>(bytes);
    }
    return bytes > 0 ? static_cast<ssize_t>(bytes) : ssize_t{NGHTTP2_ERR_DEFERRED};
  }
};

const nghttp2_session_callbacks* ClientCallbacks() {
  static const CallbacksPtr callbacks = [] {
    nghttp2_session_callbacks* made = nullptr;
    nghttp2_session_callbacks_new(&made);
    nghttp2_session_callbacks_set_on_begin_frame_callback(made, ClientEvents::OnFrameBegun);
    nghttp2_session_callbacks_set_on_begin_headers_callback(made, ClientEvents::OnHeadersBegun);
    nghttp2_session_callbacks_set_on_header_callback(made, ClientEvents::OnHeader);
    nghttp2_session_callbacks_set_on_frame_recv_callback(made, ClientEvents::OnFrame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, ClientEvents::OnData);
    nghttp2_session_callbacks_set_on_frame_send_callback(made, ClientEvents::OnSent);
    nghttp2_session_callbacks_set_on_stream_close_callback(made, ClientEvents::OnClosed);
    return made;
  }();
  return callbacks;
}

const nghttp2_session_callbacks* ServerCallbacks() {
  static const CallbacksPtr callbacks = [] {
    nghttp2_session_callbacks* made = nullptr;
    nghttp2_session_callbacks_new(&made);
    nghttp2_session_callbacks_set_on_header_callback(made, ServerEvents::OnHeader);
    nghttp2_session_callbacks_set_on_frame_recv_callback(made, ServerEvents::OnFrame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, ServerEvents::OnData);
    nghttp2_session_callbacks_set_on_stream_close_callback(made, ServerEvents::OnClosed);
    return made;
  }();
  return callbacks;
}

nghttp2_data_provider RequestBytes() { return {{.ptr = nullptr}, ServerEvents::TakeRequest}; }
nghttp2_data_provider ResponseBytes() { return {{.ptr = nullptr}, ClientEvents::TakeResponse}; }

}  // namespace ditserve
