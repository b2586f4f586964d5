#ifndef DITSERVE_SERVER_GATE_BYTE_STREAM_H_
#define DITSERVE_SERVER_GATE_BYTE_STREAM_H_

#include <asio/buffer.hpp>
#include <asio/error_code.hpp>
#include <asio/generic/stream_protocol.hpp>
#include <asio/ssl/context.hpp>
#include <cstddef>
#include <functional>
#include <memory>

#include "server/gate/turns.h"

namespace ditserve {

using Socket = asio::generic::stream_protocol::socket;

// The bytes of a connection, under TLS or not. Of each operation one may be under way; closing ends them with an error.
class ByteStream {
 public:
  using Done = std::function<void(asio::error_code error, size_t bytes)>;
  using Got = std::function<void(asio::error_code error, asio::const_buffer bytes)>;

  virtual ~ByteStream() = default;
  // To be done before all else.
  virtual void Handshake(std::function<void(asio::error_code error)> done) = 0;
  // Reads some bytes, at least one, which are there until `got` returns.
  virtual void Read(Got got) = 0;
  // Writes all of them.
  virtual void Write(asio::const_buffer buffer, Done done) = 0;
  virtual void Close() = 0;
};

// `input`, where what it reads stands while it is told, may be shared with other streams of the thread and must outlive
// it: so who says nothing takes no memory.
std::unique_ptr<ByteStream> MakePlainStream(Socket socket, asio::mutable_buffer input);
// The server's side of TLS. Its handshake goes on in `turns`, which must outlive it.
std::unique_ptr<ByteStream> MakeTlsStream(Socket socket, std::shared_ptr<asio::ssl::context> context, Turns* turns);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_BYTE_STREAM_H_
