#include "server/gate/byte_stream.h"

#include <asio/post.hpp>
#include <asio/ssl/stream.hpp>
#include <asio/write.hpp>
#include <utility>

namespace ditserve {
namespace {

void CloseSocket(Socket& socket) {
  asio::error_code ignored;  // Of a socket that the other side has closed already.
  socket.close(ignored);
}

class PlainStream final : public ByteStream {
 public:
  explicit PlainStream(Socket socket) : socket_(std::move(socket)) {}

  void Handshake(std::function<void(asio::error_code)> done) override {
    asio::post(socket_.get_executor(), [done = std::move(done)] { done({}); });
  }
  void Read(asio::mutable_buffer buffer, Done done) override { socket_.async_read_some(buffer, std::move(done)); }
  void Write(asio::const_buffer buffer, Done done) override { asio::async_write(socket_, buffer, std::move(done)); }
  void Close() override { CloseSocket(socket_); }

 private:
  Socket socket_;
};

// What TLS reads from. While a handshake lasts each read is a turn: what it brings may take milliseconds to compute,
// and a thousand clients may send it at once.
class HandshakeSocket {
 public:
  using lowest_layer_type = Socket::lowest_layer_type;
  using executor_type = Socket::executor_type;

  HandshakeSocket(Socket socket, Turns* turns) : socket_(std::move(socket)), turns_(turns) {}

  Socket& socket() { return socket_; }
  lowest_layer_type& lowest_layer() { return socket_.lowest_layer(); }
  executor_type get_executor() { return socket_.get_executor(); }
  void EndHandshake() { turns_ = nullptr; }

  template <typename Handler>
  void async_read_some(const asio::mutable_buffer& buffer, Handler handler) {
    if (turns_ == nullptr) return socket_.async_read_some(buffer, std::move(handler));
    // An error is found by reading as well.
    socket_.async_wait(Socket::wait_read, [=, this, done = ByteStream::Done(std::move(handler))](asio::error_code) {
      turns_->Take([=, this] { socket_.async_read_some(buffer, ByteStream::Done(done)); });
    });
  }
  template <typename Buffers, typename Handler>
  void async_write_some(const Buffers& buffers, Handler handler) {
    socket_.async_write_some(buffers, std::move(handler));
  }

 private:
  Socket socket_;
  Turns* turns_;
};

class TlsStream final : public ByteStream {
 public:
  TlsStream(Socket socket, std::shared_ptr<asio::ssl::context> context, Turns* turns)
      : context_(std::move(context)), stream_(HandshakeSocket(std::move(socket), turns), *context_) {}

  void Handshake(std::function<void(asio::error_code)> done) override {
    stream_.async_handshake(asio::ssl::stream_base::server, [this, done = std::move(done)](asio::error_code error) {
      stream_.next_layer().EndHandshake();
      done(error);
    });
  }
  void Read(asio::mutable_buffer buffer, Done done) override { stream_.async_read_some(buffer, std::move(done)); }
  void Write(asio::const_buffer buffer, Done done) override { asio::async_write(stream_, buffer, std::move(done)); }
  void Close() override { CloseSocket(stream_.next_layer().socket()); }

 private:
  const std::shared_ptr<asio::ssl::context> context_;
  asio::ssl::stream<HandshakeSocket> stream_;
};

}  // namespace

std::unique_ptr<ByteStream> MakePlainStream(Socket socket) { return std::make_unique<PlainStream>(std::move(socket)); }

std::unique_ptr<ByteStream> MakeTlsStream(Socket socket, std::shared_ptr<asio::ssl::context> context, Turns* turns) {
  return std::make_unique<TlsStream>(std::move(socket), std::move(context), turns);
}

}  // namespace ditserve
