#include "server/rpc/grpc_server.h"

#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "tests/server/server_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using grpc::StatusCode;

class GrpcServerTest : public ServerTest {
 protected:
  absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const std::string& address) {
    GrpcServerOptions options;
    options.address = address;
    options.max_receive_message_bytes = 4096;
    options.request_limits = {.max_batch = 4, .max_side = 64};
    return GrpcServer::Start(options, &engine_, &catalogue_);
  }

  grpc::Status ForwardTo(const std::string& address, const v1::ForwardRequest& request) {
    const auto stub = v1::TransformerService::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    v1::ForwardResponse response;
    return stub->Forward(&context, request, &response);
  }

  void SetUp() override {
    engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  }

  TempFolder folder_;
  const std::string socket_ = "unix:" + (folder_ / "s");
};

// Leaves a socket file that nobody listens on.
void LeaveSocket(const std::string& path) {
  sockaddr_un name = {};
  name.sun_family = AF_UNIX;
  ASSERT_LT(path.size(), sizeof(name.sun_path));
  std::memcpy(name.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)), 0);
  close(fd);
}

TEST_F(GrpcServerTest, ReportsThePortThatWasChosen) {
  EXPECT_THAT(server_->address(), ::testing::MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
  EXPECT_THAT(ForwardTo(server_->address(), TinyRequest()), IsServed());
}

TEST_F(GrpcServerTest, RefusesAPortThatIsInUse) {
  EXPECT_THAT(Start(server_->address()),
              StatusIs(absl::StatusCode::kUnavailable, "cannot listen on " + server_->address()));
}

TEST_F(GrpcServerTest, RefusesWhatIsNoAddress) {
  EXPECT_THAT(Start("no such host:x"), StatusIs(absl::StatusCode::kUnavailable, "cannot listen on no such host:x: "));
}

TEST_F(GrpcServerTest, ServesOnAUnixSocket) {
  const auto server = Start(socket_);
  ASSERT_THAT(server, IsOk());
  EXPECT_EQ((*server)->address(), socket_);
  EXPECT_THAT(ForwardTo(socket_, TinyRequest()), IsServed());
}

TEST_F(GrpcServerTest, ReplacesASocketThatNobodyListensOn) {
  LeaveSocket(folder_ / "s");
  const auto server = Start(socket_);
  ASSERT_THAT(server, IsOk());
  EXPECT_THAT(ForwardTo(socket_, TinyRequest()), IsServed());
}

TEST_F(GrpcServerTest, LeavesAnotherServersSocketAlone) {
  const auto first = Start(socket_);
  ASSERT_THAT(first, IsOk());
  EXPECT_THAT(Start(socket_), StatusIs(absl::StatusCode::kUnavailable, "another server is listening"));
  EXPECT_THAT(ForwardTo(socket_, TinyRequest()), IsServed());
}

TEST_F(GrpcServerTest, LeavesAFileThatIsNoSocketAlone) {
  WriteFile(folder_ / "s", "precious");
  EXPECT_THAT(Start(socket_), StatusIs(absl::StatusCode::kInvalidArgument, "what stands there is no socket"));
  EXPECT_EQ(ReadWholeFile(folder_ / "s"), "precious");
}

TEST_F(GrpcServerTest, RefusesMessagesBeyondItsLimit) {
  const auto server = Start(socket_);
  ASSERT_THAT(server, IsOk());
  v1::ForwardRequest request = TinyRequest();
  request.mutable_latents()->mutable_data()->append(4096, 'x');
  EXPECT_THAT(ForwardTo(socket_, request), Refused(StatusCode::RESOURCE_EXHAUSTED, "4096"));
  EXPECT_THAT(ForwardTo(socket_, TinyRequest()), IsServed());
}

// Sends one request on a bidirectional stream and returns the first answer.
std::string AskReflection(const std::shared_ptr<grpc::Channel>& channel, const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const auto stream =
      stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const grpc::Slice slice(request);
  grpc::ByteBuffer answer;
  stream->StartCall(nullptr);
  EXPECT_TRUE(wait());
  stream->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  EXPECT_TRUE(wait());
  stream->Read(&answer, nullptr);
  EXPECT_TRUE(wait());
  grpc::Status status;
  stream->Finish(&status, nullptr);
  EXPECT_TRUE(wait());
  EXPECT_THAT(status, IsServed());
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(answer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& part : slices) bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  return bytes;
}

TEST_F(GrpcServerTest, ListsItsServicesByReflection) {
  const std::string list_services = "\x3a\x01*";  // ServerReflectionRequest.list_services = "*".
  const std::string services = AskReflection(channel_, list_services);
  for (const char* service : {"ditserve.v1.TransformerService", "ditserve.v1.ModelService",
                              "ditserve.v1.ResidencyService", "grpc.health.v1.Health"}) {
    EXPECT_THAT(services, ::testing::HasSubstr(service));
  }
}

}  // namespace
}  // namespace ditserve
