// What a gate does with clients that do not go on. (With those that do so in time: connection_test, by another clock.)
#include <string>

#include "server/gate/gate.h"
#include "tests/server/server_fixture.h"
#include "tests/testing/raw_http2.h"

namespace ditserve {
namespace {

constexpr char kForward[] = "/ditserve.v1.TransformerService/Forward";

class GateTimeoutsTest : public ServerTest {
 protected:
  // Starts the server again, with one of its patiences short.
  void ServeWith(absl::Duration GateTimeouts::*which) {
    Serve(nullptr, [&](GrpcServerOptions& options) {
      options.timeouts.tick = absl::Milliseconds(5);
      options.timeouts.*which = absl::Milliseconds(50);
    });
  }

  // Waits until the gate holds no call.
  void AwaitNoCalls() {
    while (server_->Figures().doors[0].calls > 0) {
    }
  }

  // A gRPC message.
  static std::string Message(const google::protobuf::Message& message) {
    const std::string bytes = message.SerializeAsString();
    return '\0' + RawHttp2::Number(bytes.size()) + bytes;
  }
};

TEST_F(GateTimeoutsTest, WhoSaysNothingIsSentAway) {
  ServeWith(&GateTimeouts::greeting);
  RawHttp2 client(server_->address());
  client.AwaitEnd();
}

TEST_F(GateTimeoutsTest, WhoDoesNotAcknowledgeTheSettingsIsSentAway) {
  ServeWith(&GateTimeouts::greeting);
  RawHttp2 client(server_->address());
  client.SendPreface();
  client.SendFrame(RawHttp2::kSettings, 0, 0, "");
  client.AwaitEnd();
}

TEST_F(GateTimeoutsTest, AHeaderBlockThatDoesNotEndIsGivenUp) {
  ServeWith(&GateTimeouts::greeting);
  RawHttp2 client(server_->address());
  client.Greet();
  client.SendFrame(RawHttp2::kHeaders, 0, 1, RawHttp2::Call(kForward));
  client.AwaitEnd();
}

TEST_F(GateTimeoutsTest, ARequestThatStopsIsRefusedAndHoldsNothing) {
  ServeWith(&GateTimeouts::progress);
  for (const std::string& begun :
       {std::string(), std::string("\0\0\0", 3), '\0' + RawHttp2::Number(1'000'000) + "half"}) {
    RawHttp2 client(server_->address());
    client.Greet();
    client.SendFrame(RawHttp2::kHeaders, RawHttp2::kEndHeaders, 1, RawHttp2::Call(kForward));
    client.SendFrame(RawHttp2::kData, 0, 1, begun);
    RawHttp2::Frame frame;
    ASSERT_TRUE(client.Await(RawHttp2::kHeaders, frame)) << begun.size();
    EXPECT_EQ(frame.flags & RawHttp2::kEndStream, RawHttp2::kEndStream);
    ASSERT_TRUE(client.Await(RawHttp2::kReset, frame));  // It need send no more.
    AwaitNoCalls();
  }
  EXPECT_EQ(server_->Figures().doors[0].message_bytes, 0);
  EXPECT_EQ(engine_.submitted(), 0u);
}

TEST_F(GateTimeoutsTest, AnAnswerThatIsNotReadIsGivenUp) {
  ServeWith(&GateTimeouts::progress);
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  RawHttp2 client(server_->address());
  client.Greet(std::string("\0\4\0\0\0\0", 6));  // A window of no bytes.
  client.SendFrame(RawHttp2::kHeaders, RawHttp2::kEndHeaders, 1, RawHttp2::Call(kForward));
  client.SendFrame(RawHttp2::kData, RawHttp2::kEndStream, 1, Message(TinyRequest()));
  RawHttp2::Frame frame;
  ASSERT_TRUE(client.Await(RawHttp2::kHeaders, frame));
  EXPECT_EQ(frame.flags & RawHttp2::kEndStream, 0);
  ASSERT_TRUE(client.Await(RawHttp2::kReset, frame));
  AwaitNoCalls();
  EXPECT_THAT(server_->Figures().doors[0].refused, ::testing::IsEmpty());  // It was answered.
  EXPECT_THAT(Forward(TinyRequest()), IsServed());
}

TEST_F(GateTimeoutsTest, WhoIsSilentAndDoesNotSayThatItLivesIsSentAway) {
  Serve(nullptr, [](GrpcServerOptions& options) {
    options.timeouts.tick = absl::Milliseconds(5);
    options.timeouts.ping_after = options.timeouts.ping = absl::Milliseconds(20);
  });
  RawHttp2 client(server_->address());
  client.Greet();
  RawHttp2::Frame frame;
  ASSERT_TRUE(client.Await(RawHttp2::kPing, frame));
  client.AwaitEnd();
}

TEST_F(GateTimeoutsTest, AForwardPassMayBeSilentAsLongAsItTakes) {
  ServeWith(&GateTimeouts::progress);
  PendingForward pending(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  RawHttp2 other(server_->address());
  other.Greet();
  other.SendFrame(RawHttp2::kHeaders, RawHttp2::kEndHeaders, 1, RawHttp2::Call(kForward));
  RawHttp2::Frame frame;
  ASSERT_TRUE(other.Await(RawHttp2::kHeaders, frame));  // Of who began later and stopped: the time is over.
  call->Answer(TinyResult());
  EXPECT_THAT(pending.Wait(), IsServed());
}

TEST_F(GateTimeoutsTest, TakesAsMuchMetadataAsItPromises) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  for (int calls = 0; calls < 3; ++calls) {  // A limit of gRPC's would hold once the gate has heard of it.
    grpc::ClientContext context;
    context.AddMetadata("x", std::string(15 << 10, 'y'));
    v1::ForwardResponse response;
    EXPECT_THAT(transformer_->Forward(&context, TinyRequest(), &response), IsServed());
  }
}

TEST_F(GateTimeoutsTest, RefusesMetadataThatIsTooLong) {
  grpc::ClientContext context;
  context.AddMetadata("x", std::string(17 << 10, 'y'));
  v1::ForwardResponse response;
  EXPECT_THAT(transformer_->Forward(&context, TinyRequest(), &response),
              Refused(grpc::StatusCode::RESOURCE_EXHAUSTED, "metadata is too long"));
}

TEST_F(GateTimeoutsTest, WhoRepeatsAHeaderWithoutEndIsSentAway) {
  RawHttp2 client(server_->address());
  client.Greet();
  const std::string text(3900, 'y');
  std::string length = "\x7f";  // 127 and 3773 more, 7 bits at a time.
  length += {static_cast<char>(3773 % 128 | 128), static_cast<char>(3773 / 128)};
  const std::string entered = std::string("\x40\1x", 3) + length + text;
  client.SendFrame(RawHttp2::kHeaders, RawHttp2::kEndHeaders, 1,
                   RawHttp2::Call(kForward) + entered + std::string(4000, '\xbe'));
  client.AwaitEnd();
}

TEST_F(GateTimeoutsTest, WhoResetsWithoutEndIsSentAwayAndReachesNothing) {
  RawHttp2 client(server_->address());
  client.Greet();
  for (uint32_t stream = 1; stream < 4000; stream += 2) {
    client.SendFrame(RawHttp2::kHeaders, RawHttp2::kEndHeaders, stream, RawHttp2::Call(kForward));
    client.SendFrame(RawHttp2::kReset, 0, stream, RawHttp2::Number(8));
  }
  client.AwaitEnd();
  AwaitNoCalls();
  EXPECT_EQ(engine_.submitted(), 0u);
}

}  // namespace
}  // namespace ditserve
