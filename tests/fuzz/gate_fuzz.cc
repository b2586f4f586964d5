// A client's connection, and what becomes of it behind the gate: whatever is sent, and however gRPC answers, gRPC is
// shown only what was let in and counted, all is given back, and a client that falls silent is given up.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "tests/fuzz/require.h"
#include "tests/server/gate/connection_world.h"
#include "tests/testing/raw_http2.h"

namespace ditserve {
namespace {

constexpr const char* kPaths[] = {"/s/Infer", "/s/Read", "/h/Check", "/h/Watch", "/no/Method"};
constexpr const char* kTokens[] = {"", "Bearer a", "Bearer b", "Basic c"};

Methods SomeMethods() {
  return {{kPaths[0], {Scope::kInfer, 180'000}},
          {kPaths[1], {.scope = Scope::kRead, .max_message_bytes = 1000, .is_stream = true}},
          {kPaths[2], {.scope = std::nullopt, .max_message_bytes = 1000, .is_probe = true}},
          {kPaths[3], {.scope = std::nullopt, .max_message_bytes = 1000, .is_probe = true, .is_watch = true}}};
}

// With the token a one may do everything, with any other read alone.
class SomeTokens final : public AccessControl {
 public:
  absl::StatusOr<Caller> Check(absl::string_view token, Scope scope) const override {
    if (token.empty()) return absl::UnauthenticatedError("who?");
    if (token == "a") return Caller{"a", 3, 150'000};
    return scope == Scope::kRead ? absl::StatusOr<Caller>(Caller{std::string(token)})
                                 : absl::PermissionDeniedError("reads alone");
  }
};

// What is left of the input; zeros where nothing is.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : bytes_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return at_ == bytes_.size(); }
  uint8_t Byte() { return empty() ? 0 : static_cast<uint8_t>(bytes_[at_++]); }
  uint32_t TwoBytes() {
    const uint32_t high = Byte();
    return high << 8 | Byte();
  }
  std::string Bytes(size_t most) {
    std::string taken = bytes_.substr(at_, most);
    at_ += taken.size();
    return taken;
  }

 private:
  const std::string bytes_;
  size_t at_ = 0;
};

// A client and a server that do what the input says, one step after the other.
class Play {
 public:
  explicit Play(Input input) : input_(std::move(input)) {}

  void Run() {
    const uint8_t greeting = input_.Byte();
    if ((greeting & 1) == 0) Send(RawHttp2::kPreface + RawHttp2::FrameBytes(RawHttp2::kSettings, 0, 0, ""));
    if ((greeting & 2) == 0) Send(RawHttp2::FrameBytes(RawHttp2::kSettings, RawHttp2::kAck, 0, ""));
    while (!input_.empty()) {
      const uint8_t step = input_.Byte();
      Step(step & 0x7f);
      if ((step & 0x80) != 0) continue;  // The next one comes together with it.
      world_.Settle();
      Require(world_.Check().ok());
    }
    for (int looks = 0; looks < 5; ++looks) world_.Pass(absl::Seconds(31));
    Require(world_.is_closed() && world_.Check().ok());
  }

 private:
  void Step(uint8_t step) {
    switch (step % 8) {
      case 0:
        return Call();
      case 1:
        return Message();
      case 2:
        return AnyFrame();
      case 3:
        return Send(input_.Bytes(input_.Byte()));
      case 4:
        return Answer();
      case 5:
        return world_.Pass(absl::Seconds(input_.Byte()));
      case 6:
        return world_.client().SetReads(input_.Byte() % 2 == 0);
      default:
        return world_.Drain();
    }
  }

  void Send(const std::string& bytes) { world_.client().Send(bytes); }

  // A stream that is open, if the client has kept to the order; any other by its number.
  uint32_t Stream(uint8_t which) const { return which < 128 ? 2 * which + 1 : last_stream_ - 2 * (which - 128U); }

  void Call() {
    const uint8_t what = input_.Byte(), flags = input_.Byte();
    std::string block = RawHttp2::Call(kPaths[what % std::size(kPaths)]);
    const std::string token = kTokens[what / std::size(kPaths) % std::size(kTokens)];
    if (!token.empty()) block += RawHttp2::Header("authorization", token);
    if ((flags & 0x80) != 0) block += input_.Bytes(input_.Byte());
    last_stream_ += 2;
    Send(RawHttp2::FrameBytes(RawHttp2::kHeaders, (flags & 0x7f) ^ RawHttp2::kEndHeaders, last_stream_, block));
  }

  // Says how long it is, and brings all of it or its beginning.
  void Message() {
    const uint32_t stream = Stream(input_.Byte());
    const uint8_t how = input_.Byte();
    const uint32_t bytes = input_.TwoBytes() << (how >> 4 & 3);
    std::string rest = static_cast<char>(how >> 2 & 1) + RawHttp2::Number(bytes);
    rest.append(std::min<size_t>(bytes, (how & 2) != 0 ? 100 : 1 << 18), '\0');
    constexpr size_t kMostBytes = 16384;
    for (; rest.size() > kMostBytes; rest.erase(0, kMostBytes)) {
      Send(RawHttp2::FrameBytes(RawHttp2::kData, 0, stream, rest.substr(0, kMostBytes)));
      world_.Settle();  // It sees the window grow.
    }
    Send(RawHttp2::FrameBytes(RawHttp2::kData, how & RawHttp2::kEndStream, stream, rest));
  }

  void AnyFrame() {
    const uint8_t type = input_.Byte(), flags = input_.Byte(), which = input_.Byte();
    Send(RawHttp2::FrameBytes(type, flags, which == 255 ? 0 : Stream(which), input_.Bytes(input_.Byte())));
  }

  void Answer() {
    const uint8_t which = input_.Byte(), how = input_.Byte();
    GrpcDouble* const server = world_.server();
    if (server == nullptr || world_.is_closed()) return;
    if (how == 255) return server->GoAway();
    if (server->calls().empty()) return;
    const int32_t id = std::next(server->calls().begin(), which % server->calls().size())->first;
    switch (how % 4) {
      case 0:
        return server->Reset(id, how / 4);
      case 1:
        return server->RespondWithError(id);
      case 2:
        return server->Respond(id, how << 10, true);
      default:
        return server->Respond(id, how << 10, false);
    }
  }

  Input input_;
  SomeTokens access_;
  ConnectionWorld world_{SomeMethods(), {.max_calls = 4, .message_bytes = 200'000}, &access_};
  uint32_t last_stream_ = std::numeric_limits<uint32_t>::max();  // 1 is next.
};

}  // namespace
}  // namespace ditserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ditserve::Play(ditserve::Input(data, size)).Run();
  return 0;
}
