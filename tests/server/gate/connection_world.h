#ifndef DITSERVE_TESTS_SERVER_GATE_CONNECTION_WORLD_H_
#define DITSERVE_TESTS_SERVER_GATE_CONNECTION_WORLD_H_

#include <sys/socket.h>

#include <algorithm>
#include <asio/buffer.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <cstdint>
#include <functional>
#include <memory>
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
  const std::string& received() const { return received_; }

 private:
  class Stream final : public ByteStream {
   public:
    explicit Stream(ClientDouble& client) : client_(client) {}

    void Handshake(std::function<void(asio::error_code)> done) override {
      asio::post(client_.io_, [done = std::move(done)] { done({}); });
    }
    void Read(asio::mutable_buffer buffer, Done done) override {
      client_.read_ = {buffer.data(), buffer.size(), std::move(done)};
      client_.Move();
    }
    void Write(asio::const_buffer buffer, Done done) override {
      client_.write_ = {const_cast<void*>(buffer.data()), buffer.size(), std::move(done)};  // It is only read.
      client_.Move();
    }
    void Close() override {
      client_.End(client_.read_, asio::error::operation_aborted, 0);
      client_.End(client_.write_, asio::error::operation_aborted, 0);
    }

   private:
    ClientDouble& client_;
  };

  struct Operation {
    void* data = nullptr;
    size_t bytes = 0;
    ByteStream::Done done;  // Empty: none is under way.
  };

  void Move() {
    if (read_.done && !sent_.empty()) {
      const size_t bytes = std::min(read_.bytes, sent_.size());
      sent_.copy(static_cast<char*>(read_.data), bytes);
      sent_.erase(0, bytes);
      End(read_, {}, bytes);
    }
    if (write_.done && reads_) {
      received_.append(static_cast<const char*>(write_.data), write_.bytes);
      End(write_, {}, write_.bytes);
    }
  }

  void End(Operation& operation, asio::error_code error, size_t bytes) {
    if (!operation.done) return;
    asio::post(io_, [done = std::exchange(operation, {}).done, error, bytes] { done(error, bytes); });
  }

  asio::io_context& io_;
  bool reads_ = true;
  std::string sent_, received_;
  Operation read_, write_;
};

// One connection with all that it touches, on this thread and a clock that stands still: a client, a doorman, gRPC.
class ConnectionWorld {
 public:
  ConnectionWorld(Methods methods, const DoorLimits& limits, const AccessControl* access)
      : methods_(std::move(methods)), doorman_(methods_, limits, access) {
    host_.doorman = &doorman_;
    host_.clock = &clock_;
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

  // Until nothing happens any more.
  void Settle() {
    io_.restart();
    while (io_.poll() > 0) io_.restart();
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
  absl::StatusOr<Socket> ConnectServer() {
    int ends[2];
    if (server_ != nullptr || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) {
      return absl::InternalError("a connection has one to the server");
    }
    const asio::generic::stream_protocol protocol(AF_UNIX, 0);
    server_ = std::make_shared<GrpcDouble>();
    server_->Start(Socket(io_, protocol, ends[1]));
    return Socket(io_, protocol, ends[0]);
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
