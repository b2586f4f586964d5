#include "server/gate/listener.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <asio/ip/tcp.hpp>
#include <asio/local/stream_protocol.hpp>
#include <chrono>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

constexpr std::chrono::milliseconds kPause(100);  // While there are no descriptors.
constexpr int kBacklog = 1024;

absl::Status Unavailable(const asio::error_code& error) { return absl::UnavailableError(error.message()); }

// Refuses to take a path from a server that still listens there, or from what is no socket.
absl::Status CheckSocketFile(asio::io_context& io, const std::string& path) {
  struct stat info;
  if (lstat(path.c_str(), &info) != 0) return absl::OkStatus();
  if (!S_ISSOCK(info.st_mode)) return absl::InvalidArgumentError("what stands there is no socket");
  asio::local::stream_protocol::socket socket(io);
  asio::error_code error;
  socket.connect(asio::local::stream_protocol::endpoint(path), error);
  return error ? absl::OkStatus() : absl::UnavailableError("another server is listening");
}

template <typename Endpoint>
asio::error_code Bind(const Endpoint& endpoint, bool is_tcp,
                      asio::basic_socket_acceptor<asio::generic::stream_protocol>& acceptor) {
  asio::error_code error;
  acceptor.open(endpoint.protocol(), error);
  if (!error && is_tcp) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(kBacklog, error);
  return error;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Listener>> Listener::Open(asio::io_context& io, const std::string& address) {
  absl::StatusOr<std::unique_ptr<Listener>> opened = absl::InvalidArgumentError("expected host:port or unix:/path");
  const size_t colon = address.rfind(':');
  if (absl::string_view path = address; absl::ConsumePrefix(&path, "unix:")) {
    opened = OpenUnix(io, std::string(path));
  } else if (colon != std::string::npos) {
    opened = OpenTcp(io, address.substr(0, colon), address.substr(colon + 1));
  }
  if (opened.ok()) return opened;
  return absl::Status(opened.status().code(),
                      absl::StrCat("cannot listen on ", address, ": ", opened.status().message()));
}

absl::StatusOr<std::unique_ptr<Listener>> Listener::OpenUnix(asio::io_context& io, const std::string& path) {
  DITSERVE_RETURN_IF_ERROR(CheckSocketFile(io, path));
  unlink(path.c_str());
  std::vector<Acceptor> acceptors;
  acceptors.emplace_back(io);
  try {
    const asio::local::stream_protocol::endpoint endpoint(path);  // Throws for a path that is too long.
    if (const asio::error_code error =
            Bind(asio::generic::stream_protocol::endpoint(endpoint), false, acceptors[0].socket)) {
      return Unavailable(error);
    }
  } catch (const asio::system_error& error) {
    return absl::InvalidArgumentError(error.code().message());
  }
  auto listener = absl::WrapUnique(new Listener("unix:" + path, std::move(acceptors)));
  listener->socket_file_ = path;
  return listener;
}

absl::StatusOr<std::unique_ptr<Listener>> Listener::OpenTcp(asio::io_context& io, const std::string& host,
                                                            const std::string& port) {
  absl::string_view bare = host;
  if (absl::ConsumePrefix(&bare, "[")) absl::ConsumeSuffix(&bare, "]");
  asio::error_code error;
  asio::ip::tcp::resolver resolver(io);
  const auto found = resolver.resolve(std::string(bare), port, asio::ip::resolver_base::passive, error);
  if (error) return Unavailable(error);
  std::vector<Acceptor> acceptors;
  uint16_t chosen = 0;
  // A name such as localhost has several addresses: one port for all of them.
  for (const auto& entry : found) {
    asio::ip::tcp::endpoint endpoint = entry.endpoint();
    if (chosen != 0) endpoint.port(chosen);
    Acceptor acceptor(io);
    error = Bind(asio::generic::stream_protocol::endpoint(endpoint), true, acceptor.socket);
    if (error == asio::error::address_family_not_supported || error == std::errc::address_not_available) continue;
    if (error) return Unavailable(error);
    sockaddr_storage name = {};
    socklen_t bytes = sizeof(name);
    getsockname(acceptor.socket.native_handle(), reinterpret_cast<sockaddr*>(&name), &bytes);
    chosen = ntohs(name.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&name)->sin6_port
                                              : reinterpret_cast<const sockaddr_in*>(&name)->sin_port);
    acceptors.push_back(std::move(acceptor));
  }
  if (acceptors.empty()) return absl::UnavailableError("it is not one of this machine's addresses");
  return absl::WrapUnique(new Listener(absl::StrCat(host, ":", chosen), std::move(acceptors)));
}

void Listener::Start(std::function<void(Socket)> accepted) {
  accepted_ = std::move(accepted);
  for (Acceptor& acceptor : acceptors_) Accept(acceptor);
}

void Listener::Accept(Acceptor& acceptor) {
  acceptor.socket.async_accept([this, &acceptor](asio::error_code error, Socket socket) {
    if (error == asio::error::operation_aborted || !acceptor.socket.is_open()) return;
    if (!error) {
      accepted_(std::move(socket));
      return Accept(acceptor);
    }
    if (error != asio::error::no_descriptors && error != asio::error::connection_aborted) {
      spdlog::error("{} takes no connection: {}", address_, error.message());
    }
    acceptor.pause.expires_after(kPause);
    acceptor.pause.async_wait([this, &acceptor](asio::error_code cancelled) {
      if (!cancelled && acceptor.socket.is_open()) Accept(acceptor);
    });
  });
}

void Listener::Close() {
  asio::error_code ignored;  // Of what is closed already.
  for (Acceptor& acceptor : acceptors_) {
    acceptor.socket.close(ignored);
    acceptor.pause.cancel();
  }
  RemoveSocketFile();
}

void Listener::RemoveSocketFile() {
  if (!socket_file_.empty()) unlink(std::exchange(socket_file_, "").c_str());
}

}  // namespace ditserve
