#ifndef DITSERVE_TESTS_SERVER_GATE_CONNECTION_WORLD_H_
#define DITSERVE_TESTS_SERVER_GATE_CONNECTION_WORLD_H_

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <asio/buffer.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "server/gate/connection.h"
#include "tests/server/gate/grpc_double.h"
#include "tests/testing/fake_clock.h"

namespace ditserve {

// A client's end of a connection, in memory.
class ClientDouble {
 public:
  explicit ClientDouble(asio::io_context& io) : io_(io) {}

  // What the gate has of this connection. The client must outlive it.
  std::unique_ptr<ByteStream> MakeStream() { return std::make_unique<Stream>(*this); }

  void Send(const std::string& bytes) {
    sent_ += bytes;
    Move();
  }
  // One who reads nothing lets nothing be written.
  void SetReads(bool reads) {
    reads_ = reads;
    Move();
  }
  // Closes the connection.
  void Leave() { Give("", asio::error::eof); }
  const std::string& received() const { return received_; }

 private:
  static constexpr size_t kMostInputBytes = 16 << 10;  // That are told at once.

  class Stream final : public ByteStream {
   public:
    explicit Stream(ClientDouble& client) : client_(client) {}

    void Handshake(std::function<void(asio::error_code)> done) override {
      asio::post(client_.io_, [done = std::move(done)] { done({}); });
    }
    void Read(Got got) override {
      client_.got_ = std::move(got);
      client_.Move();
    }
    void Write(asio::const_buffer buffer, Done done) override {
      client_.unread_ = buffer;
      client_.written_ = std::move(done);
      client_.Move();
    }
    void Close() override {
      client_.Give("", asio::error::operation_aborted);
      client_.EndWrite(asio::error::operation_aborted, 0);
    }

   private:
    ClientDouble& client_;
  };

  void Move() {
    if (got_ && !sent_.empty()) {
      Give(sent_.substr(0, kMostInputBytes), {});
      sent_.erase(0, kMostInputBytes);
    }
    if (written_ && reads_) {
      received_.append(static_cast<const char*>(unread_.data()), unread_.size());
      EndWrite({}, unread_.size());
    }
  }

  void Give(std::string bytes, asio::error_code error) {
    if (!got_) return;
    asio::post(io_, [got = std::exchange(got_, nullptr), bytes = std::move(bytes), error] {
      got(error, asio::buffer(bytes));
    });
  }

  void EndWrite(asio::error_code error, size_t bytes) {
    if (!written_) return;
    asio::post(io_, [done = std::exchange(written_, nullptr), error, bytes] { done(error, bytes); });
  }

  asio::io_context& io_;
  bool reads_ = true;
  std::string sent_, received_;
  asio::const_buffer unread_;  // What is being written.
  // Of what is under way; empty where nothing is.
  ByteStream::Got got_;
  ByteStream::Done written_;
};

// One connection with all that it touches, on this thread and a clock that stands still: a client, a doorman, gRPC.
class ConnectionWorld {
 public:
  // `random`: of the connection, from 0 to 1.
  ConnectionWorld(Methods methods, const DoorLimits& limits, const AccessControl* access,
                  const GateTimeouts& timeouts = {}, double random = 0)
      : methods_(std::move(methods)), doorman_(methods_, limits, access) {
    host_.doorman = &doorman_;
    host_.clock = &clock_;
    host_.timeouts = timeouts;
    host_.random = [random] { return random; };
    host_.connect_server = [this] { return ConnectServer(); };
    host_.trailers = [](const absl::Status& why) {
      return Headers{{"grpc-status", absl::StrCat(static_cast<int>(why.code()))}};
    };
    host_.refused = [this](const absl::Status& why) { refused_ = why; };
    host_.bytes_freed = [this] {
      if (doorman_.TurnedMessagesAway()) asio::post(io_, [this] { connection_->Retry(); });
    };
    connection_ = std::make_shared<Connection>(&host_, [this] { ++times_closed_; });
    connection_->Start(client_.MakeStream());
  }
  ConnectionWorld(const ConnectionWorld&) = delete;
  ConnectionWorld& operator=(const ConnectionWorld&) = delete;
  ~ConnectionWorld() {  // NOLINT(bugprone-exception-escape): a test may end by one.
    connection_->Close();
    if (server_ != nullptr) server_->Close();
    Settle();
  }

  ClientDouble& client() { return client_; }
  const Doorman& doorman() const { return doorman_; }
  // Null until the first call is let in.
  GrpcDouble* server() { return server_.get(); }
  // Why a call was refused last.
  const absl::Status& refused() const { return refused_; }
  bool is_closed() const { return times_closed_ > 0; }
  std::optional<Connection::Idleness> Idle() const { return connection_->Idle(); }

  // Until nothing happens any more.
  void Settle() {
    io_.restart();
    while (io_.poll() > 0) io_.restart();
  }
  // One thing that is next, if there is any.
  void Step() {
    io_.restart();
    io_.poll_one();
  }
  // So much time passes until the gate looks at its clock.
  void Pass(absl::Duration time) {
    clock_.Advance(time);
    if (!is_closed()) connection_->Tick();
    Settle();
  }
  void Drain() {
    if (!is_closed()) connection_->Drain();
    Settle();
  }

  // What holds whenever nothing happens. Errors: Internal that names what does not.
  absl::Status Check() const {
    if (times_closed_ > 1) return absl::InternalError("told twice that it is closed");
    if (is_closed() && (doorman_.calls() != 0 || doorman_.message_bytes() != 0)) {
      return absl::InternalError(
          absl::StrCat("closed, and holds ", doorman_.calls(), " calls and ", doorman_.message_bytes(), " bytes"));
    }
    if (server_ == nullptr || is_closed()) return absl::OkStatus();
    if (!server_->fault().empty()) return absl::InternalError(absl::StrCat("gRPC's side: ", server_->fault()));
    return CheckCounts();
  }

 private:
  absl::StatusOr<std::unique_ptr<ByteStream>> ConnectServer() {
    int ends[2];
    if (server_ != nullptr || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) {
      return absl::InternalError("a connection has one to the server");
    }
    const asio::generic::stream_protocol protocol(AF_UNIX, 0);
    server_ = std::make_shared<GrpcDouble>();
    server_->Start(Socket(io_, protocol, ends[1]));
    return MakePlainStream(Socket(io_, protocol, ends[0]), asio::buffer(input_));
  }

  // What gRPC has to do with is served here, and counted.
  absl::Status CheckCounts() const {
    int64_t calls = 0, message_bytes = 0;
    for (const auto& [id, call] : server_->calls()) {
      const auto method = methods_.find(call.Path());
      if (method == methods_.end()) return absl::InternalError("gRPC has a call of a method that is not served");
      DITSERVE_ASSIGN_OR_RETURN(const int64_t bytes, MessageUnderWay(call.request, method->second.is_stream));
      if (bytes > method->second.max_message_bytes) return absl::InternalError("gRPC has a message that is too long");
      if (!method->second.is_probe) ++calls;
      if (bytes > Doorman::kSmallMessageBytes) message_bytes += bytes;
    }
    if (calls <= doorman_.calls() && message_bytes <= doorman_.message_bytes()) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("gRPC has ", calls, " calls and ", message_bytes, " bytes of messages; ",
                                            doorman_.calls(), " and ", doorman_.message_bytes(), " are counted"));
  }

  // Bytes of a request's last message, whether or not all of them have come.
  static absl::StatusOr<int64_t> MessageUnderWay(const std::string& request, bool is_stream) {
    constexpr size_t kPrefixBytes = 5;
    int64_t bytes = 0;
    for (size_t at = 0; at + kPrefixBytes <= request.size(); at += kPrefixBytes + static_cast<size_t>(bytes)) {
      if (at > 0 && !is_stream) return absl::InternalError("gRPC has a second message of a call that has one");
      if (request[at] != 0) return absl::InternalError("gRPC has a compressed message");
      bytes = 0;
      for (size_t i = 1; i < kPrefixBytes; ++i) bytes = bytes << 8 | static_cast<uint8_t>(request[at + i]);
    }
    return bytes;
  }

  asio::io_context io_{1};
  FakeClock clock_;
  std::array<uint8_t, 16 << 10> input_;
  const Methods methods_;
  Doorman doorman_;
  ConnectionHost host_;
  ClientDouble client_{io_};
  std::shared_ptr<GrpcDouble> server_;
  std::shared_ptr<Connection> connection_;
  absl::Status refused_;
  int times_closed_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_SERVER_GATE_CONNECTION_WORLD_H_
