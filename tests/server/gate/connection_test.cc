#include "server/gate/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "inference/grpc_service.pb.h"
#include "tests/server/gate/connection_world.h"
#include "tests/testing/raw_http2.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr char kInfer[] = "/s/Infer", kStream[] = "/s/Stream", kWalked[] = "/s/Walked";

class ConnectionTest : public ::testing::Test {
 protected:
  ConnectionTest() {
    world_.client().Send(RawHttp2::kPreface);
    Send(RawHttp2::kSettings, 0, 0, "");
    Send(RawHttp2::kSettings, RawHttp2::kAck, 0, "");
  }
  ~ConnectionTest() override { EXPECT_THAT(world_.Check(), IsOk()); }

  void Send(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
    world_.client().Send(RawHttp2::FrameBytes(type, flags, stream, payload));
    world_.Settle();
  }
  void Call(uint32_t stream, const char* path = kInfer) {
    Send(RawHttp2::kHeaders, RawHttp2::kEndHeaders, stream, RawHttp2::Call(path));
  }
  // The first bytes of a message; all of them where it is short.
  void Begin(uint32_t stream, size_t message_bytes) {
    Begin(stream, message_bytes, std::string(std::min<size_t>(message_bytes, 100), 'm'));
  }
  // A message of so many bytes that begins with `begun`.
  void Begin(uint32_t stream, size_t message_bytes, const std::string& begun) {
    Send(RawHttp2::kData, 0, stream, '\0' + RawHttp2::Number(message_bytes) + begun);
  }
  void Reset(uint32_t stream) { Send(RawHttp2::kReset, 0, stream, RawHttp2::Number(NGHTTP2_CANCEL)); }

  const google::protobuf::Descriptor* const type_ = inference::ModelInferRequest::descriptor();
  ConnectionWorld world_{
      {{kInfer, {Scope::kInfer, 200'000}},
       {kStream, {.scope = Scope::kInfer, .max_message_bytes = 200'000, .is_stream = true}},
       {kWalked, {.scope = Scope::kInfer, .max_message_bytes = 200'000, .is_stream = true, .message = type_}}},
      {.max_calls = 4, .message_bytes = 200'000},
      nullptr};
};

// What the gate has sent, of one type.
std::vector<RawHttp2::Frame> FramesOf(ConnectionWorld& world, uint8_t type) {
  constexpr size_t kHeaderBytes = 9;
  std::vector<RawHttp2::Frame> frames;
  const std::string& sent = world.client().received();
  for (size_t at = 0; at + kHeaderBytes <= sent.size();) {
    const auto number = [&](size_t offset, size_t bytes) {
      size_t value = 0;
      for (size_t i = 0; i < bytes; ++i) value = value << 8 | static_cast<uint8_t>(sent[at + offset + i]);
      return value;
    };
    const size_t payload = number(0, 3);
    RawHttp2::Frame frame = {static_cast<uint8_t>(number(3, 1)), static_cast<uint8_t>(number(4, 1)),
                             static_cast<uint32_t>(number(5, 4)), sent.substr(at + kHeaderBytes, payload)};
    at += kHeaderBytes + payload;
    if (frame.type == type) frames.push_back(std::move(frame));
  }
  return frames;
}

// Empty inputs of a ModelInferRequest.
std::string Inputs(int count) {
  std::string fields;
  for (int i = 0; i < count; ++i) fields += std::string("\x2a\0", 2);
  return fields;
}

TEST_F(ConnectionTest, ACallThatTheServerHasEndedIsNotOpenedAgainForAMessageThatWaitedForRoom) {
  Send(RawHttp2::kSettings, 0, 0, std::string("\0\4\0\0\0\0", 6));  // A window of no bytes: the gate keeps answers.
  Call(1);
  Begin(1, 150'000);
  Call(3, kStream);
  Begin(3, 100);
  Begin(3, 100'000);  // Waits.
  ASSERT_EQ(world_.server()->calls().size(), 2u);
  const int32_t answered = std::prev(world_.server()->calls().end())->first;
  world_.server()->Respond(answered, 10, true);
  world_.Settle();
  world_.server()->Reset(answered, NGHTTP2_NO_ERROR);
  world_.Settle();
  Reset(1);  // Now there is room.
  EXPECT_THAT(world_.Check(), IsOk());
  EXPECT_EQ(world_.server()->calls_seen(), 2);
}

TEST_F(ConnectionTest, ASecondMessageIsRefusedWhereOneIsTakenForTheFirstIsHeldStill) {
  Call(1);
  Begin(1, 70'000, "");
  for (int i = 0; i < 7; ++i) Send(RawHttp2::kData, 0, 1, std::string(10'000, 'm'));
  EXPECT_EQ(world_.doorman().message_bytes(), 70'000);
  ASSERT_EQ(world_.server()->calls().size(), 1u);
  Begin(1, 1);
  EXPECT_THAT(world_.refused(), StatusIs(absl::StatusCode::kInvalidArgument, "several messages, expected one"));
  EXPECT_EQ(world_.server()->calls().size(), 0u);
}

TEST_F(ConnectionTest, ACallOfAClientThatHasGoneIsCountedUntilTheServerHasSeenItEnd) {
  Call(1);
  Begin(1, 150'000);
  ASSERT_EQ(world_.server()->calls().size(), 1u);
  Call(3);
  Begin(3, 100'000);  // Waits, and has not come as far.
  world_.client().Leave();
  while (world_.doorman().message_bytes() > 0) {
    EXPECT_EQ(world_.doorman().message_bytes(), 150'000);
    world_.Step();
  }
  EXPECT_EQ(world_.server()->calls().size(), 0u);
  EXPECT_EQ(world_.doorman().calls(), 0);
  EXPECT_TRUE(world_.is_closed());
}

TEST_F(ConnectionTest, IsIdleOnceTheServerHasSeenItsLastCallEnd) {
  using Idleness = Connection::Idleness;
  EXPECT_EQ(world_.Idle(), Idleness(false, absl::ZeroDuration()));
  world_.Pass(absl::Seconds(1));
  Call(1, "/s/None");
  EXPECT_THAT(world_.refused(), StatusIs(absl::StatusCode::kUnimplemented, "/s/None"));
  EXPECT_EQ(world_.Idle(),
            Idleness(false, absl::ZeroDuration()));  // Who asks for what nobody has is as idle as before.
  Call(3);
  Begin(3, 10);
  ASSERT_EQ(world_.server()->calls().size(), 1u);
  world_.Pass(absl::Seconds(1));
  world_.client().Send(RawHttp2::FrameBytes(RawHttp2::kReset, 0, 3, RawHttp2::Number(NGHTTP2_CANCEL)));
  while (!world_.server()->calls().empty()) {
    EXPECT_FALSE(world_.Idle().has_value());
    world_.Step();
  }
  world_.Settle();
  EXPECT_EQ(world_.Idle(), Idleness(true, absl::Seconds(2)));
}

TEST_F(ConnectionTest, ARequestThatEndsWithoutItsMessageIsRefused) {
  Send(RawHttp2::kHeaders, RawHttp2::kEndHeaders | RawHttp2::kEndStream, 1, RawHttp2::Call(kInfer));
  EXPECT_THAT(world_.refused(), StatusIs(absl::StatusCode::kInvalidArgument, "request: no message came"));
  Call(3);
  Send(RawHttp2::kData, RawHttp2::kEndStream, 3, std::string(4, '\0'));
  EXPECT_THAT(world_.refused(), StatusIs(absl::StatusCode::kInvalidArgument, "request: no message came"));
  EXPECT_EQ(world_.server(), nullptr);
  Call(5);
  Begin(5, 150'000);
  Send(RawHttp2::kData, RawHttp2::kEndStream, 5, "m");
  EXPECT_THAT(world_.refused(),
              StatusIs(absl::StatusCode::kInvalidArgument, "request: ended after 106 bytes of 150005"));
  EXPECT_EQ(world_.server()->calls().size(), 0u);
  EXPECT_EQ(world_.doorman().calls(), 0);
}

TEST_F(ConnectionTest, AStreamMayEndWithoutAMessage) {
  Send(RawHttp2::kHeaders, RawHttp2::kEndHeaders | RawHttp2::kEndStream, 1, RawHttp2::Call(kStream));
  EXPECT_THAT(world_.refused(), IsOk());
  ASSERT_NE(world_.server(), nullptr);
  EXPECT_EQ(world_.server()->calls().size(), 1u);
}

TEST_F(ConnectionTest, AMessageOfTooManyFieldsIsRefusedWhileItComesAndItsCallTakenBack) {
  Call(1, kWalked);
  Begin(1, 150'000, Inputs(MessageWalk::kMostFields));
  EXPECT_THAT(world_.refused(), IsOk());
  ASSERT_EQ(world_.server()->calls().size(), 1u);
  Send(RawHttp2::kData, 0, 1, Inputs(1).substr(0, 1));
  EXPECT_THAT(world_.refused(), StatusIs(absl::StatusCode::kInvalidArgument, "inputs: is field 1025 of the message"));
  EXPECT_EQ(world_.server()->calls().size(), 0u);
  EXPECT_EQ(world_.doorman().calls(), 0);
  EXPECT_EQ(world_.doorman().message_bytes(), 0);
  Send(RawHttp2::kData, 0, 1, Inputs(1000));
  EXPECT_THAT(world_.Check(), IsOk());
}

TEST_F(ConnectionTest, WhatCameOfAMessageThatWaitedForRoomIsLookedAtBeforeItGoesOn) {
  Call(1);
  Begin(1, 150'000);
  Call(3, kWalked);
  Begin(3, 100'000, Inputs(MessageWalk::kMostFields + 1));
  EXPECT_THAT(world_.refused(), IsOk());
  Reset(1);  // Now there is room.
  EXPECT_THAT(world_.refused(), StatusIs(absl::StatusCode::kInvalidArgument, "inputs: is field 1025 of the message"));
  EXPECT_EQ(world_.server()->calls_seen(), 1);
}

TEST_F(ConnectionTest, EachMessageOfACallIsLookedAtByItself) {
  Call(1, kWalked);
  const std::string most = Inputs(MessageWalk::kMostFields);
  Begin(1, most.size(), most + '\0' + RawHttp2::Number(most.size()) + most);
  EXPECT_THAT(world_.refused(), IsOk());
  EXPECT_EQ(world_.server()->calls().begin()->second.request.size(), 2 * (most.size() + 5));
}

TEST_F(ConnectionTest, WhoIsSilentIsAskedWhetherItLivesAndStaysWhileItSaysSo) {
  const GateTimeouts timeouts;
  constexpr absl::Duration kMoment = absl::Milliseconds(1);
  for (size_t asked = 0; asked < 4; ++asked) {
    world_.Pass(kMoment);  // It is seen that something came.
    world_.Pass(timeouts.ping_after);
    EXPECT_EQ(FramesOf(world_, RawHttp2::kPing).size(), asked);
    world_.Pass(kMoment);
    const std::vector<RawHttp2::Frame> pings = FramesOf(world_, RawHttp2::kPing);
    ASSERT_EQ(pings.size(), asked + 1);
    world_.Pass(timeouts.ping);
    ASSERT_FALSE(world_.is_closed());
    if (asked < 3) Send(RawHttp2::kPing, RawHttp2::kAck, 0, pings.back().payload);
  }
  world_.Pass(kMoment);  // The last was not answered.
  EXPECT_TRUE(world_.is_closed());
}

TEST_F(ConnectionTest, WhoOpensTooManyStreamsBeforeItHeardOfTheLimitLosesThoseAlone) {
  constexpr uint32_t kOneTooMany = 2 * 129 - 1;
  ConnectionWorld world({{kInfer, {Scope::kInfer, 200'000}}}, {.max_calls = 1000, .message_bytes = 200'000}, nullptr);
  const auto send = [&world](uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
    world.client().Send(RawHttp2::FrameBytes(type, flags, stream, payload));
    world.Settle();
  };
  world.client().Send(RawHttp2::kPreface);
  send(RawHttp2::kSettings, 0, 0, "");
  for (uint32_t stream = 1; stream <= kOneTooMany; stream += 2) {
    send(RawHttp2::kHeaders, RawHttp2::kEndHeaders, stream, RawHttp2::Call(kInfer));
  }
  const std::vector<RawHttp2::Frame> resets = FramesOf(world, RawHttp2::kReset);
  ASSERT_EQ(resets.size(), 1u);
  EXPECT_EQ(resets[0].stream, kOneTooMany);
  send(RawHttp2::kSettings, RawHttp2::kAck, 0, "");
  world.Pass(GateTimeouts().greeting + absl::Seconds(1));
  ASSERT_FALSE(world.is_closed());
  send(RawHttp2::kData, RawHttp2::kEndStream, 1, '\0' + RawHttp2::Number(3) + "mmm");
  ASSERT_EQ(world.server()->calls().size(), 1u);
  world.server()->Respond(world.server()->calls().begin()->first, 10, true);
  world.Settle();
  std::string answer;
  for (const RawHttp2::Frame& frame : FramesOf(world, RawHttp2::kData)) answer += frame.payload;
  EXPECT_EQ(answer, std::string(10, 'r'));
  EXPECT_THAT(world.Check(), IsOk());
}

// Knows one token.
class OneToken final : public AccessControl {
 public:
  absl::StatusOr<Caller> Check(absl::string_view token, Scope) const override {
    return token == "secret" ? absl::StatusOr<Caller>(Caller{"studio"}) : absl::UnauthenticatedError("unknown");
  }
};

// Whom the server is told of, of a client with the token that says it is somebody else.
std::vector<std::string> CallersTold(const AccessControl* access) {
  ConnectionWorld world({{kInfer, {Scope::kInfer, 200'000}}}, {.max_calls = 4}, access);
  world.client().Send(RawHttp2::kPreface + RawHttp2::FrameBytes(RawHttp2::kSettings, 0, 0, "") +
                      RawHttp2::FrameBytes(RawHttp2::kHeaders, RawHttp2::kEndHeaders, 1,
                                           RawHttp2::Call(kInfer) + RawHttp2::Header(kCallerHeader, "operator") +
                                               RawHttp2::Header("authorization", "Bearer secret") +
                                               RawHttp2::Header(kCallerHeader, "operator")) +
                      RawHttp2::FrameBytes(RawHttp2::kData, 0, 1, '\0' + RawHttp2::Number(3) + "mmm"));
  world.Settle();
  std::vector<std::string> told;
  if (world.server() == nullptr) return {"no call came"};
  for (const auto& [id, call] : world.server()->calls()) {
    for (const auto& [name, value] : call.headers) {
      if (name == kCallerHeader) told.push_back(value);
    }
  }
  return told;
}

TEST(CallerTest, TheServerIsToldByTheGateAloneWhoCalls) {
  OneToken tokens;
  EXPECT_EQ(CallersTold(&tokens), std::vector<std::string>{"studio"});
  EXPECT_EQ(CallersTold(nullptr), std::vector<std::string>{});
}

TEST(AgedConnectionTest, IsToldToComeAgainATenthBeforeOrBehindItsAgeAndEndsTheCallsThatItHas) {
  constexpr absl::Duration kMoment = absl::Seconds(1);
  for (const auto& [random, age] : {std::pair(0.0, absl::Minutes(27)), std::pair(1.0, absl::Minutes(33))}) {
    ConnectionWorld world({{kInfer, {Scope::kInfer, 200'000}}}, {.max_calls = 4, .message_bytes = 200'000}, nullptr,
                          {.connection_age = absl::Minutes(30)}, random);
    world.client().Send(
        RawHttp2::kPreface + RawHttp2::FrameBytes(RawHttp2::kSettings, 0, 0, "") +
        RawHttp2::FrameBytes(RawHttp2::kSettings, RawHttp2::kAck, 0, "") +
        RawHttp2::FrameBytes(RawHttp2::kHeaders, RawHttp2::kEndHeaders, 1, RawHttp2::Call(kInfer)) +
        RawHttp2::FrameBytes(RawHttp2::kData, RawHttp2::kEndStream, 1, '\0' + RawHttp2::Number(3) + "mmm"));
    world.Settle();
    ASSERT_NE(world.server(), nullptr);
    world.Pass(age - kMoment);
    EXPECT_THAT(FramesOf(world, RawHttp2::kGoAway), ::testing::IsEmpty());
    world.Pass(2 * kMoment);
    EXPECT_EQ(FramesOf(world, RawHttp2::kGoAway).size(), 1u);  // Calls that cross it are served still.
    world.Pass(kMoment);
    EXPECT_EQ(FramesOf(world, RawHttp2::kGoAway).size(), 2u);
    world.Pass(kMoment);
    ASSERT_FALSE(world.is_closed());
    world.server()->Respond(world.server()->calls().begin()->first, 10, true);
    world.Settle();
    EXPECT_THAT(FramesOf(world, RawHttp2::kData), ::testing::Not(::testing::IsEmpty()));
    EXPECT_TRUE(world.is_closed());
    EXPECT_THAT(world.Check(), IsOk());
  }
}

TEST(UngreetedConnectionTest, WhoReadsNothingIsGivenUpBeforeTheRefusalsOfItsStreamsPileUp) {
  ConnectionWorld world({{kInfer, {Scope::kInfer, 200'000}}}, {.max_calls = 4}, nullptr);
  world.client().SetReads(false);
  world.client().Send(RawHttp2::kPreface + RawHttp2::FrameBytes(RawHttp2::kSettings, 0, 0, ""));
  std::string calls;  // The limit of 128 is one that the client has not heard of: those beyond it are reset.
  for (uint32_t i = 0; i < 10'000; ++i) {
    calls += RawHttp2::FrameBytes(RawHttp2::kHeaders, RawHttp2::kEndHeaders, 2 * i + 1, "");
  }
  world.client().Send(calls);
  world.Settle();
  EXPECT_TRUE(world.is_closed());
  EXPECT_THAT(world.Check(), IsOk());
}

}  // namespace
}  // namespace ditserve
