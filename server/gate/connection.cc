#include "server/gate/connection.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"
#include "server/gate/access.h"
#include "server/gate/connection_events.h"

namespace ditserve {
namespace {

// Streams of one client's connection at one time.
constexpr uint32_t kMaxStreams = 128;

// What a client may send of a message before its length is known and counted, and after.
constexpr uint32_t kFirstWindowBytes = 64 << 10;
constexpr int32_t kMessageWindowBytes = 1 << 20;
// Of the connections themselves: their streams' bound what is under way.
constexpr int32_t kConnectionWindowBytes = std::numeric_limits<int32_t>::max();
// Of a response that waits for its client.
constexpr uint32_t kResponseWindowBytes = 256 << 10;

constexpr size_t kPrefixBytes = 5;  // Of a gRPC message: whether it is compressed, and its length.

const std::string& ValueOf(const Headers& headers, const char* name) {
  static const std::string none;
  const auto found =
      std::find_if(headers.begin(), headers.end(), [&](const auto& header) { return header.first == name; });
  return found == headers.end() ? none : found->second;
}

}  // namespace

void Connection::Start(std::unique_ptr<ByteStream> client) {
  client_ = std::make_unique<Http2Session>(Http2Session::Side::kServer, std::move(client), ClientCallbacks(), this,
                                           weak_from_this(),
                                           Http2Session::Events{[this] { Flush(); }, [this] { OnClientGone(); }});
  nghttp2_session_set_local_window_size(client_->get(), NGHTTP2_FLAG_NONE, 0, kConnectionWindowBytes);
  client_->Start({{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, kMaxStreams},
                  {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kFirstWindowBytes},
                  {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, 16 << 10}});
}

Call* Connection::Begin(int32_t client_id) {
  auto call = std::make_unique<Call>();
  call->client_id = client_id;
  call->progress = host_.clock->Now();
  return (calls_[client_id] = std::move(call)).get();
}

void Connection::OnRequestHeaders(Call& call) {
  absl::StatusOr<Doorman::Call> admitted =
      host_.doorman->LetIn(ValueOf(call.headers, ":path"), ValueOf(call.headers, "authorization"), probes_);
  if (!admitted.ok()) return Refuse(call, admitted.status());
  call.admitted = *std::move(admitted);
  call.is_work = !call.admitted->method->is_probe;
  has_worked_ |= call.is_work;
  // Nobody behind the gate needs the secret; who calls they are told here.
  call.headers.erase(std::remove_if(call.headers.begin(), call.headers.end(),
                                    [](const auto& header) {
                                      return header.first == "authorization" || header.first == kCallerHeader;
                                    }),
                     call.headers.end());
  if (!call.admitted->caller.empty()) call.headers.emplace_back(kCallerHeader, call.admitted->caller);
}

void Connection::OnRequestData(Call& call, const uint8_t* data, size_t bytes) {
  call.request.Append(data, bytes);
  call.progress = host_.clock->Now();
  PassOn(call);
}

void Connection::OnRequestEnd(Call& call) {
  if (call.is_over()) return;
  call.request_ended = true;
  PassOn(call);
}

uint64_t Connection::Ready(const Call& call) const {
  // Half a prefix, behind a message, is the server's to complain of.
  const bool is_cut = call.request_ended && call.request.received() - call.counted < kPrefixBytes;
  return is_cut ? call.request.received() : call.walked;
}

absl::Status Connection::CheckEnd(const Call& call) {
  if (!call.request_ended || call.waits_since || call.response_begun || call.admitted->method->is_stream) {
    return absl::OkStatus();
  }
  const uint64_t bytes = call.request.received();
  if (bytes < kPrefixBytes) return FieldError("request", "no message came");
  if (bytes >= call.counted) return absl::OkStatus();
  return FieldError("request", absl::StrCat("ended after ", bytes, " bytes of ", call.counted));
}

void Connection::PassOn(Call& call) {
  if (const absl::Status walked = call.Walk(); !walked.ok()) return Refuse(call, walked);
  while (const std::optional<const uint8_t*> prefix = call.request.Find(call.counted, kPrefixBytes)) {
    // What is held of the first would be counted no more.
    if (call.counted > 0 && !call.admitted->method->is_stream) {
      return Refuse(call, FieldError("request", "is several messages, expected one"));
    }
    // A kilobyte that becomes a gigabyte can't be counted; and tensors hardly shrink.
    if (**prefix != 0) return Refuse(call, absl::UnimplementedError("compressed messages are not taken"));
    const uint8_t* const length = *prefix + 1;
    const int64_t bytes = int64_t{length[0]} << 24 | length[1] << 16 | length[2] << 8 | length[3];
    const absl::StatusOr<bool> counted = host_.doorman->CountMessage(*call.admitted, bytes);
    if (!counted.ok()) return Refuse(call, counted.status());
    if (!*counted) {
      if (!call.waits_since) call.waits_since = host_.clock->Now();
      break;
    }
    call.waits_since.reset();
    if (bytes > kFirstWindowBytes) {
      nghttp2_session_set_local_window_size(client_->get(), NGHTTP2_FLAG_NONE, call.client_id, kMessageWindowBytes);
    }
    call.BeginMessage(kPrefixBytes, bytes);
    if (const absl::Status walked = call.Walk(); !walked.ok()) return Refuse(call, walked);
  }
  if (const absl::Status whole = CheckEnd(call); !whole.ok()) return Refuse(call, whole);
  if (call.server_id != 0) {
    nghttp2_session_resume_data(server_->get(), call.server_id);
  } else if (Ready(call) > 0 || call.request_ended) {
    if (!call.waits_since) OpenAtServer(call);
  }
}

void Connection::OpenAtServer(Call& call) {
  if (server_ == nullptr) {
    absl::StatusOr<std::unique_ptr<ByteStream>> stream = host_.connect_server();
    if (!stream.ok()) return Refuse(call, stream.status());
    server_ = std::make_unique<Http2Session>(Http2Session::Side::kClient, *std::move(stream), ServerCallbacks(), this,
                                             weak_from_this(),
                                             Http2Session::Events{[this] { Flush(); }, [this] { Close(); }});
    nghttp2_session_set_local_window_size(server_->get(), NGHTTP2_FLAG_NONE, 0, kConnectionWindowBytes);
    server_->Start({{NGHTTP2_SETTINGS_ENABLE_PUSH, 0}, {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kResponseWindowBytes}});
  }
  const nghttp2_data_provider request = RequestBytes();
  const std::vector<nghttp2_nv> headers = ToNghttp2(call.headers);
  const int32_t id = nghttp2_submit_request(server_->get(), nullptr, headers.data(), headers.size(), &request, &call);
  if (id < 0) return Refuse(call, absl::UnavailableError("the server takes no more calls of this connection"));
  call.server_id = id;
  call.was_opened = true;
  call.headers.clear();
}

void Connection::Refuse(Call& call, const absl::Status& why) {
  if (call.is_refused) return;
  call.is_refused = true;
  call.waits_since.reset();
  call.headers = Headers();   // The stream lasts until the client has read the refusal.
  if (call.response_begun) {  // By gRPC, which counts it; the client can be told nothing else.
    nghttp2_submit_rst_stream(client_->get(), NGHTTP2_FLAG_NONE, call.client_id, NGHTTP2_ENHANCE_YOUR_CALM);
    return;
  }
  host_.refused(why);
  Leave(call);
  call.request.Clear();
  Headers headers = {{":status", "200"}, {"content-type", "application/grpc"}};
  for (auto& trailer : host_.trailers(why)) headers.push_back(std::move(trailer));
  const std::vector<nghttp2_nv> response = ToNghttp2(headers);
  nghttp2_submit_response(client_->get(), call.client_id, response.data(), response.size(), nullptr);
}

void Connection::Leave(Call& call) {
  const bool frees_bytes = call.admitted && static_cast<bool>(call.admitted->bytes);
  if (call.server_id != 0) {
    nghttp2_session_set_stream_user_data(server_->get(), call.server_id, nullptr);
    nghttp2_submit_rst_stream(server_->get(), NGHTTP2_FLAG_NONE, call.server_id, NGHTTP2_CANCEL);
    call.server_id = 0;
    leaving_next_.push_back(*std::move(call.admitted));
    if (leaving_.empty()) {
      std::swap(leaving_, leaving_next_);
      nghttp2_submit_ping(server_->get(), NGHTTP2_FLAG_NONE, nullptr);
    }
    call.admitted.reset();
    return;
  }
  call.admitted.reset();
  if (frees_bytes) host_.bytes_freed();
}

void Connection::OnServerPong() {
  leaving_.clear();
  std::swap(leaving_, leaving_next_);
  if (!leaving_.empty()) nghttp2_submit_ping(server_->get(), NGHTTP2_FLAG_NONE, nullptr);
  host_.bytes_freed();
  if (client_gone_since_ && leaving_.empty()) Close();
}

void Connection::OnClientClosed(int32_t client_id) {
  const auto call = calls_.find(client_id);
  if (call == calls_.end()) return;
  if (call->second->is_work) idle_since_ = host_.clock->Now();
  Leave(*call->second);
  calls_.erase(call);
}

void Connection::OnResponseHeaders(Call& call, bool is_first, bool is_last) {
  if (!is_first) {
    call.trailers = std::move(call.headers);
    call.headers.clear();
    OnResponseEnd(call);
    return;
  }
  call.response_begun = true;
  call.response_ended = is_last;
  const nghttp2_data_provider bytes = ResponseBytes();
  const std::vector<nghttp2_nv> headers = ToNghttp2(call.headers);
  nghttp2_submit_response(client_->get(), call.client_id, headers.data(), headers.size(), is_last ? nullptr : &bytes);
  call.headers.clear();
}

void Connection::OnResponseData(Call& call, const uint8_t* data, size_t bytes) {
  if (call.response.empty()) call.progress = host_.clock->Now();
  call.response.Append(data, bytes);
  nghttp2_session_resume_data(client_->get(), call.client_id);
}

void Connection::OnResponseEnd(Call& call) {
  call.response_ended = true;
  // A probe is done with its short answer, read or not.
  if (call.admitted->method->is_probe) call.admitted->slot = {};
  nghttp2_session_resume_data(client_->get(), call.client_id);
}

void Connection::OnServerClosed(Call& call, uint32_t error_code) {
  call.server_id = 0;
  call.waits_since.reset();         // Nobody wants the message any more.
  if (call.response_ended) return;  // The client's side closes when it has all.
  nghttp2_submit_rst_stream(client_->get(), NGHTTP2_FLAG_NONE, call.client_id,
                            error_code == NGHTTP2_NO_ERROR ? uint32_t{NGHTTP2_INTERNAL_ERROR} : error_code);
}

void Connection::Retry() {
  for (const auto& [id, call] : calls_) {
    if (call->waits_since) PassOn(*call);
  }
  Flush();
}

void Connection::Tick() {
  const absl::Duration now = host_.clock->Now();
  const GateTimeouts& timeouts = host_.timeouts;
  if (client_gone_since_) {
    if (now - *client_gone_since_ > timeouts.ping) Close();
    return;
  }
  if (std::exchange(known_bytes_read_, client_->bytes_read()) != client_->bytes_read()) last_read_ = now;
  if (std::exchange(known_bytes_written_, client_->bytes_written()) != client_->bytes_written() ||
      !client_->is_writing()) {
    last_written_ = now;
  }
  const bool is_stuck = (!client_has_acknowledged_ && now - born_ > timeouts.greeting) ||
                        (header_block_since_ && now - *header_block_since_ > timeouts.greeting) ||
                        now - last_written_ > timeouts.progress ||
                        (client_ping_sent_ && now - *client_ping_sent_ > timeouts.ping);
  if (is_stuck) return OnClientGone();
  if (!client_ping_sent_ && now - last_read_ > timeouts.ping_after) {
    client_ping_sent_ = now;
    nghttp2_submit_ping(client_->get(), NGHTTP2_FLAG_NONE, nullptr);
  }
  for (const auto& [id, call] : calls_) TickCall(*call, now);
  if (is_draining_) FinishDrain();
  if (now - born_ > most_age_) BeginDrain();
  Flush();
}

void Connection::TickCall(Call& call, absl::Duration now) {
  if (call.is_refused) return;
  if (call.waits_since) {
    if (now - *call.waits_since > host_.timeouts.message_room) {
      Refuse(call, absl::ResourceExhaustedError("message_memory: the messages of other calls leave no room for it"));
    }
    return;
  }
  if (now - call.progress <= host_.timeouts.progress) return;
  // The server has what it may have, and there is no whole message more.
  const bool request_stopped = !call.request_ended &&
                               call.request.taken() == std::min(Ready(call), call.request.received()) &&
                               (call.request.received() == 0 || call.request.received() != call.counted);
  if (request_stopped || !call.response.empty()) {
    Refuse(call, absl::DeadlineExceededError(absl::StrCat("the request stopped after ", call.request.received(),
                                                          " bytes of a message that is not whole")));
  }
}

void Connection::Drain() {
  BeginDrain();
  Flush();
}

void Connection::BeginDrain() {
  // What the client sends before it hears of it is served still.
  if (!std::exchange(is_draining_, true)) nghttp2_submit_shutdown_notice(client_->get());
}

void Connection::FinishDrain() {
  if (std::exchange(told_last_call_, true)) return;
  nghttp2_submit_goaway(client_->get(), NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(client_->get()),
                        NGHTTP2_NO_ERROR, nullptr, 0);
}

std::optional<Connection::Idleness> Connection::Idle() const {
  const auto works = [](const Doorman::Call& call) { return !call.method->is_probe; };
  const bool has_work =
      std::any_of(calls_.begin(), calls_.end(), [](const auto& entry) { return entry.second->is_work; }) ||
      std::any_of(leaving_.begin(), leaving_.end(), works) ||
      std::any_of(leaving_next_.begin(), leaving_next_.end(), works);
  if (has_work) return std::nullopt;
  return Idleness(has_worked_, idle_since_);
}

void Connection::Dismiss() {
  nghttp2_session_terminate_session(client_->get(), NGHTTP2_NO_ERROR);
  Flush();  // What fits into the socket's buffer: who reads nothing is not waited for.
  Close();
}

void Connection::Flush() {
  bool moved = true;
  while (moved && closed_ != nullptr) {
    moved = server_ != nullptr && server_->Flush();
    moved = (closed_ != nullptr && client_->Flush()) || moved;
  }
}

void Connection::OnClientGone() {
  if (closed_ == nullptr || client_gone_since_) return;
  client_gone_since_ = host_.clock->Now();
  client_->Close();
  for (const auto& [id, call] : calls_) Leave(*call);
  calls_.clear();
  if (leaving_.empty()) return Close();
  Flush();
}

void Connection::Close() {
  if (closed_ == nullptr) return;
  const auto closed = std::exchange(closed_, nullptr);
  client_->Close();
  if (server_ != nullptr) server_->Close();
  calls_.clear();
  leaving_.clear();
  leaving_next_.clear();
  host_.bytes_freed();
  closed();
}

}  // namespace ditserve
