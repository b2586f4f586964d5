#include "server/gate/door.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <asio/ip/tcp.hpp>
#include <asio/post.hpp>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {

absl::StatusOr<std::unique_ptr<Door>> Door::Open(asio::io_context& io, const DoorOptions& door, const GateOptions& gate,
                                                 const TlsCertificates* certificates, const Clock* clock,
                                                 std::function<void()> changed) {
  auto opened = absl::WrapUnique(new Door(io, door, gate, certificates, clock, std::move(changed)));
  DITSERVE_ASSIGN_OR_RETURN(opened->listener_, Listener::Open(io, door.address));
  opened->address_ = opened->listener_->address();
  return opened;
}

Door::Door(asio::io_context& io, const DoorOptions& door, const GateOptions& gate, const TlsCertificates* certificates,
           const Clock* clock, std::function<void()> changed)
    : io_(io),
      gate_(gate),
      max_connections_(door.limits.max_connections),
      certificates_(certificates),
      changed_(std::move(changed)),
      doorman_(door.methods, door.limits, door.asks_for_tokens ? gate.access : nullptr),
      handshakes_(io),
      name_(door.name) {
  host_.doorman = &doorman_;
  host_.clock = clock;
  host_.timeouts = gate.timeouts;
  host_.connect_server = [this] { return ConnectServer(); };
  host_.trailers = gate.trailers;
  host_.bytes_freed = [this] { RetryMessages(); };
  host_.random = [this] { return std::uniform_real_distribution<double>()(random_); };
  host_.refused = [this](const absl::Status& why) {
    if (spdlog::should_log(spdlog::level::debug)) {
      spdlog::debug("refused at the address of {}: {}", name_, std::string(why.message()));
    }
    const absl::MutexLock lock(&mutex_);
    ++refused_[why.code()];
  };
}

void Door::Start() {
  listener_->Start([this](Socket socket) { Accept(std::move(socket)); });
}

void Door::Accept(Socket socket) {
  if (connections_.size() >= static_cast<size_t>(max_connections_)) {
    ++turned_away_;  // This one, or the one that makes room for it.
    const std::shared_ptr<Connection> idle = IdleLongest();
    if (idle == nullptr) return;
    idle->Dismiss();
  }
  asio::error_code ignored;  // Of a socket that is none of TCP's.
  socket.set_option(asio::ip::tcp::no_delay(true), ignored);
  auto slot = std::make_shared<std::weak_ptr<Connection>>();
  auto connection = std::make_shared<Connection>(&host_, [this, slot] {
    connections_.erase(slot->lock());
    Count();
    changed_();
  });
  *slot = connection;
  connections_.insert(connection);
  connection->Start(certificates_ == nullptr
                        ? MakePlainStream(std::move(socket), asio::buffer(input_))
                        : MakeTlsStream(std::move(socket), certificates_->context(), &handshakes_));
  Count();
}

std::shared_ptr<Connection> Door::IdleLongest() const {
  std::shared_ptr<Connection> longest;
  std::optional<Connection::Idleness> most;
  for (const std::shared_ptr<Connection>& connection : connections_) {
    const std::optional<Connection::Idleness> idle = connection->Idle();
    if (!idle || (most && *idle >= *most)) continue;
    most = idle;
    longest = connection;
  }
  return longest;
}

absl::StatusOr<std::unique_ptr<ByteStream>> Door::ConnectServer() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) {
    return absl::UnavailableError(absl::StrCat("no connection to the server: ", std::strerror(errno)));
  }
  Socket socket(io_, asio::generic::stream_protocol(AF_UNIX, 0), ends[0]);
  gate_.connect_server(ends[1]);
  return MakePlainStream(std::move(socket), asio::buffer(input_));
}

void Door::RetryMessages() {
  if (!doorman_.TurnedMessagesAway()) return;
  asio::post(io_, [this] { Each([](Connection& connection) { connection.Retry(); }); });
}

template <typename Ask>
void Door::Each(Ask ask) {
  const std::vector<std::shared_ptr<Connection>> connections(connections_.begin(), connections_.end());
  for (const std::shared_ptr<Connection>& connection : connections) ask(*connection);
  Count();
}

void Door::Tick() {
  Each([this](Connection& connection) {
    connection.Tick();
    // One that came since. Not as it comes: who is told at once comes again at once.
    if (is_draining_) connection.Drain();
  });
}

void Door::Drain() {
  is_draining_ = true;
  Each([](Connection& connection) { connection.Drain(); });
}

void Door::Close() {
  listener_->Close();
  Each([](Connection& connection) { connection.Close(); });
}

void Door::Count() {
  connection_count_ = static_cast<int64_t>(connections_.size());
  call_count_ = doorman_.calls();
  message_bytes_ = doorman_.message_bytes();
}

DoorFigures Door::Figures() const {
  const absl::MutexLock lock(&mutex_);
  return {name_, connection_count_, call_count_, message_bytes_, turned_away_, refused_};
}

}  // namespace ditserve
