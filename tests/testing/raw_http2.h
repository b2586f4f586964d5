#ifndef DITSERVE_TESTS_TESTING_RAW_HTTP2_H_
#define DITSERVE_TESTS_TESTING_RAW_HTTP2_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"

namespace ditserve {

// A client that sends HTTP/2's frames as it is told to, as no library would.
class RawHttp2 {
 public:
  static constexpr uint8_t kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6, kGoAway = 7,
                           kWindowUpdate = 8;
  static constexpr uint8_t kEndStream = 1, kAck = 1, kEndHeaders = 4;
  static constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

  struct Frame {
    uint8_t type = 0, flags = 0;
    uint32_t stream = 0;
    std::string payload;
  };

  // `address`: 127.0.0.1:port.
  explicit RawHttp2(const std::string& address) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    int port = 0;
    if (!absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) abort();
    sockaddr_in name = {};
    name.sin_family = AF_INET;
    name.sin_port = htons(static_cast<uint16_t>(port));
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(socket_, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0) abort();
  }
  ~RawHttp2() { close(socket_); }

  void Greet(const std::string& settings = "") {
    SendPreface();
    SendFrame(kSettings, 0, 0, settings);
    Acknowledge();
  }

  void SendPreface() { Send(kPreface); }

  // The server's settings.
  void Acknowledge() { SendFrame(kSettings, kAck, 0, ""); }

  void SendFrame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
    Send(FrameBytes(type, flags, stream, payload));
  }

  static std::string FrameBytes(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
    std::string frame = Number(payload.size()).substr(1);
    frame += {static_cast<char>(type), static_cast<char>(flags)};
    return frame + Number(stream) + payload;
  }

  // The header block of a call of gRPC's.
  static std::string Call(const std::string& path) {
    std::string block;
    for (const auto& [name, value] :
         std::vector<std::pair<std::string, std::string>>{{":method", "POST"},
                                                          {":scheme", "http"},
                                                          {":path", path},
                                                          {":authority", "localhost"},
                                                          {"te", "trailers"},
                                                          {"content-type", "application/grpc"}}) {
      block += Header(name, value);
    }
    return block;
  }

  // One of a header block, of texts that are short.
  static std::string Header(const std::string& name, const std::string& value) {
    std::string header(1, '\0');  // A literal, not indexed.
    for (const std::string& text : {name, value}) header += static_cast<char>(text.size()) + text;
    return header;
  }

  // 4 bytes, the first the highest.
  static std::string Number(size_t value) {
    const uint32_t number = htonl(static_cast<uint32_t>(value));
    return std::string(reinterpret_cast<const char*>(&number), 4);
  }

  // The next frame; false when the server has closed the connection.
  bool Read(Frame& frame) {
    std::string header;
    if (!ReadBytes(9, header)) return false;
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(header[i]); };
    frame.type = byte(3);
    frame.flags = byte(4);
    frame.stream = static_cast<uint32_t>(byte(5) << 24 | byte(6) << 16 | byte(7) << 8 | byte(8));
    return ReadBytes(static_cast<size_t>(byte(0) << 16 | byte(1) << 8 | byte(2)), frame.payload);
  }

  // The next frame of a type; false when the server has closed the connection.
  bool Await(uint8_t type, Frame& frame) {
    while (Read(frame)) {
      if (frame.type == type) return true;
    }
    return false;
  }

  // Reads on until the server closes the connection.
  void AwaitEnd() {
    Frame frame;
    while (Read(frame)) {
    }
  }

 private:
  void Send(const std::string& bytes) { static_cast<void>(send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL)); }

  bool ReadBytes(size_t bytes, std::string& read) {
    read.resize(bytes);
    return bytes == 0 || recv(socket_, read.data(), bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes);
  }

  const int socket_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_RAW_HTTP2_H_
