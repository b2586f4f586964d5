#include "server/gate/byte_stream.h"

#include <array>
#include <asio/post.hpp>
#include <asio/ssl/stream.hpp>
#include <asio/write.hpp>
#include <cstdint>
#include <utility>

namespace ditserve {
namespace {

void CloseSocket(Socket& socket) {
  asio::error_code ignored;  // Of a socket that the other side has closed already.
  socket.close(ignored);
}

class PlainStream final : public ByteStream {
 public:
  PlainStream(Socket socket, asio::mutable_buffer input) : socket_(std::move(socket)), input_(input) {
    asio::error_code ignored;  // Of a socket that is closed: reading finds it.
    socket_.non_blocking(true, ignored);
  }

  void Handshake(std::function<void(asio::error_code)> done) override {
    asio::post(socket_.get_executor(), [done = std::move(done)] { done({}); });
  }
  void Read(Got got) override {
    socket_.async_wait(Socket::wait_read, [this, got = std::move(got)](asio::error_code error) mutable {
      const size_t bytes = error ? 0 : socket_.read_some(input_, error);
      if (error == asio::error::would_block) return Read(std::move(got));
      got(error, asio::buffer(input_, bytes));
    });
  }
  void Write(asio::const_buffer buffer, Done done) override { asio::async_write(socket_, buffer, std::move(done)); }
  void Close() override { CloseSocket(socket_); }

 private:
  Socket socket_;
  const asio::mutable_buffer input_;
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
  void Read(Got got) override {
    stream_.async_read_some(asio::buffer(input_), [this, got = std::move(got)](asio::error_code error, size_t bytes) {
      got(error, asio::buffer(input_, bytes));
    });
  }
  void Write(asio::const_buffer buffer, Done done) override { asio::async_write(stream_, buffer, std::move(done)); }
  void Close() override { CloseSocket(stream_.next_layer().socket()); }

 private:
  const std::shared_ptr<asio::ssl::context> context_;
  asio::ssl::stream<HandshakeSocket> stream_;
  std::array<uint8_t, 16 << 10> input_;  // A record.
};

}  // namespace

std::unique_ptr<ByteStream> MakePlainStream(Socket socket, asio::mutable_buffer input) {
  return std::make_unique<PlainStream>(std::move(socket), input);
}

std::unique_ptr<ByteStream> MakeTlsStream(Socket socket, std::shared_ptr<asio::ssl::context> context, Turns* turns) {
  return std::make_unique<TlsStream>(std::move(socket), std::move(context), turns);
}

}  // namespace ditserve
