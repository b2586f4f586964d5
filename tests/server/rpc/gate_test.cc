// What the gate lets in, seen by gRPC's own clients.
#include "server/gate/gate.h"

#include <grpcpp/generic/generic_stub.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <thread>
#include <utility>
#include <vector>

#include "ditserve/v1/model_service.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/rpc/served_methods.h"
#include "tests/server/server_fixture.h"
#include "tests/testing/certificates.h"
#include "tests/testing/raw_http2.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using grpc::StatusCode;

// Tokens by their text.
class SomeTokens final : public AccessControl {
 public:
  void Add(const std::string& token, std::vector<Scope> scopes, Caller caller) {
    tokens_.emplace(token, std::pair(std::move(caller), std::move(scopes)));
  }

  absl::StatusOr<Caller> Check(absl::string_view token, Scope scope) const override {
    const auto found = tokens_.find(std::string(token));
    if (found == tokens_.end()) return absl::UnauthenticatedError("unknown");
    const std::vector<Scope>& scopes = found->second.second;
    if (std::find(scopes.begin(), scopes.end(), scope) == scopes.end()) return absl::PermissionDeniedError("lacks it");
    return found->second.first;
  }

 private:
  std::map<std::string, std::pair<Caller, std::vector<Scope>>> tokens_;
};

class GateTest : public ServerTest {
 protected:
  // Starts the server again. Everything that is waited for is looked at often.
  void ServeWith(const std::function<void(GrpcServerOptions&)>& change) {
    Serve(nullptr, [&](GrpcServerOptions& options) {
      options.timeouts.tick = absl::Milliseconds(10);
      change(options);
    });
  }

  std::string File(const std::string& name, const std::string& text) {
    WriteFile(folder_ / ("new-" + name), text);
    std::filesystem::rename(folder_ / ("new-" + name), folder_ / name);
    return folder_ / name;
  }

  TlsFiles Files(const Certificate& certificate) {
    return {File("certificate.pem", certificate.certificate), File("key.pem", certificate.private_key), ""};
  }

  // Who believes `authority`, and shows `own`, asks for health on a connection of its own.
  grpc::Status CheckUnderTls(const std::string& authority, const Certificate& own = {}) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel = grpc::CreateCustomChannel(
        server_->address(), grpc::SslCredentials({authority, own.private_key, own.certificate}), arguments);
    return Check(channel);
  }

  static grpc::Status Check(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckResponse response;
    return grpc::health::v1::Health::NewStub(channel)->Check(&context, {}, &response);
  }

  // On a connection of its own.
  grpc::Status CheckAnew() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return Check(grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments));
  }

  // The gate has read all that came when this returns.
  static void Greet(RawHttp2& client) {
    client.Greet();
    client.SendFrame(RawHttp2::kPing, 0, 0, std::string(8, 'p'));
    RawHttp2::Frame frame;
    ASSERT_TRUE(client.Await(RawHttp2::kPing, frame));
  }
  static void Begin(RawHttp2& client, const std::string& path, uint32_t stream = 1) {
    client.SendFrame(RawHttp2::kHeaders, RawHttp2::kEndHeaders, stream, RawHttp2::Call(path));
    client.SendFrame(RawHttp2::kData, RawHttp2::kEndStream, stream, std::string(5, '\0'));
  }
  static constexpr char kCheck[] = "/grpc.health.v1.Health/Check";
  static void AwaitAnswer(RawHttp2& client, const std::string& path, uint32_t stream) {
    Begin(client, path, stream);
    RawHttp2::Frame frame;
    do {
      ASSERT_TRUE(client.Read(frame));
    } while (frame.stream != stream || (frame.flags & RawHttp2::kEndStream) == 0);
  }

  static grpc::Status ListModels(const std::shared_ptr<grpc::Channel>& channel, const std::string& token) {
    grpc::ClientContext context;
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    v1::ListModelsResponse response;
    return v1::ModelService::NewStub(channel)->ListModels(&context, {}, &response);
  }

  grpc::Status ForwardWith(const std::string& token) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    v1::ForwardResponse response;
    return transformer_->Forward(&context, TinyRequest(), &response);
  }

  TempFolder folder_;
};

// A request of so many bytes.
v1::ForwardRequest LargeRequest(size_t bytes) {
  v1::ForwardRequest request = TinyRequest();
  request.mutable_latents()->mutable_data()->resize(bytes);
  return request;
}

TEST_F(GateTest, ServesUnderTlsThoseWhoBelieveItsCertificate) {
  const CertificateAuthority authority, other;
  ServeWith([&](GrpcServerOptions& options) { options.tls = Files(authority.Issue("server")); });
  EXPECT_THAT(CheckUnderTls(authority.certificate()), IsServed());
  EXPECT_THAT(CheckUnderTls(other.certificate()), Refused(StatusCode::UNAVAILABLE, ""));
  EXPECT_THAT(Check(channel_), Refused(StatusCode::UNAVAILABLE, ""));
  EXPECT_THAT(Check(admin_channel_), Refused(StatusCode::UNAVAILABLE, ""));
}

TEST_F(GateTest, AsksClientsForACertificateOfTheirAuthority) {
  const CertificateAuthority authority, of_clients;
  ServeWith([&](GrpcServerOptions& options) {
    options.tls = Files(authority.Issue("server"));
    options.tls.client_ca = File("client_ca.pem", of_clients.certificate());
  });
  EXPECT_THAT(CheckUnderTls(authority.certificate(), of_clients.Issue("client")), IsServed());
  EXPECT_THAT(CheckUnderTls(authority.certificate()), Refused(StatusCode::UNAVAILABLE, ""));
  EXPECT_THAT(CheckUnderTls(authority.certificate(), authority.Issue("client")), Refused(StatusCode::UNAVAILABLE, ""));
  EXPECT_THAT(CheckUnderTls(authority.certificate(), of_clients.Issue("client", -60)),
              Refused(StatusCode::UNAVAILABLE, ""));
}

TEST_F(GateTest, TakesOverARotatedCertificateAndKeepsItsOwnWhileTheFilesAreWrong) {
  const CertificateAuthority authority, next;
  ServeWith([&](GrpcServerOptions& options) { options.tls = Files(authority.Issue("server")); });
  ASSERT_THAT(CheckUnderTls(authority.certificate()), IsServed());
  const absl::Time first_ends = server_->Figures().certificate_ends;
  File("key.pem", "nonsense");
  File("certificate.pem", authority.Issue("server").certificate);  // Without its key.
  EXPECT_THAT(CheckUnderTls(authority.certificate()), IsServed());
  Files(next.Issue("server", 7200));
  while (!CheckUnderTls(next.certificate()).ok()) {
  }
  EXPECT_THAT(CheckUnderTls(authority.certificate()), Refused(StatusCode::UNAVAILABLE, ""));
  EXPECT_GT(server_->Figures().certificate_ends, first_ends + absl::Minutes(30));
}

TEST_F(GateTest, TakesOverARotatedAuthorityOfItsClients) {
  const CertificateAuthority authority, of_clients, next;
  ServeWith([&](GrpcServerOptions& options) {
    options.tls = Files(authority.Issue("server"));
    options.tls.client_ca = File("client_ca.pem", of_clients.certificate());
  });
  ASSERT_THAT(CheckUnderTls(authority.certificate(), of_clients.Issue("client")), IsServed());
  File("client_ca.pem", next.certificate());
  while (!CheckUnderTls(authority.certificate(), next.Issue("client")).ok()) {
  }
  EXPECT_THAT(CheckUnderTls(authority.certificate(), of_clients.Issue("client")), Refused(StatusCode::UNAVAILABLE, ""));
}

TEST_F(GateTest, DoesNotStartWithCertificatesThatCantBeUsed) {
  const CertificateAuthority authority;
  const Certificate good = authority.Issue("server"), other = authority.Issue("server");
  const std::vector<std::pair<TlsFiles, std::string>> wrong = {
      {{File("c", good.certificate), folder_ / "none", ""}, "none: no such file"},
      {{File("c", good.certificate), File("k", other.private_key), ""}, "k: "},
      {{File("text", "nonsense"), File("l", good.private_key), ""}, "text: "},
      {{File("d", good.certificate), File("m", good.private_key), File("text", "nonsense")}, "text: "}};
  for (const auto& [files, part] : wrong) {
    GrpcServerOptions options;
    options.address = "127.0.0.1:0";
    options.tls = files;
    const absl::Status status = GrpcServer::Start(options, &engine_, &catalogue_).status();
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(part));
  }
}

// Calls a method by its path, with a message of these bytes.
grpc::Status CallMethod(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
                        const std::string& bytes = "") {
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const grpc::Slice slice(bytes);
  const auto call = stub.PrepareUnaryCall(&context, path, grpc::ByteBuffer(&slice, 1), &queue);
  grpc::ByteBuffer response;
  grpc::Status status;
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  return status;
}

TEST_F(GateTest, EveryServiceButHealthAsksForAToken) {
  SomeTokens access;
  ServeWith([&](GrpcServerOptions& options) { options.access = &access; });
  int asked = 0;
  for (const auto& [channel, methods] :
       {std::pair(channel_, ClientMethods(1)), std::pair(admin_channel_, AdminMethods())}) {
    for (const auto& [path, method] : methods) {
      if (!method.scope) continue;
      EXPECT_THAT(CallMethod(channel, path), Refused(StatusCode::UNAUTHENTICATED, "unknown")) << path;
      ++asked;
    }
  }
  EXPECT_GE(asked, 16);
  EXPECT_THAT(CallMethod(channel_, "/none.Such/Method"), Refused(StatusCode::UNAUTHENTICATED, "unknown"));
  EXPECT_THAT(Check(channel_), IsServed());
  server_.reset();
}

TEST_F(GateTest, ATokenAllowsWhatItsScopesSay) {
  SomeTokens access;
  access.Add("reader", {Scope::kRead}, {"grafana"});
  access.Add("client", {Scope::kInfer}, {"pipeline"});
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  ServeWith([&](GrpcServerOptions& options) { options.access = &access; });
  EXPECT_THAT(ListModels(channel_, "reader"), IsServed());
  EXPECT_THAT(ForwardWith("reader"), Refused(StatusCode::PERMISSION_DENIED, "lacks it"));
  EXPECT_THAT(ForwardWith("client"), IsServed());
  EXPECT_THAT(ListModels(channel_, "client"), Refused(StatusCode::PERMISSION_DENIED, "lacks it"));
  server_.reset();
}

TEST_F(GateTest, ObserversAreToldTheNameOfTheTokenAndOfNoOther) {
  SomeTokens access;
  access.Add("client", {Scope::kInfer}, {"pipeline"});
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  for (const AccessControl* asked :
       {static_cast<const AccessControl*>(&access), static_cast<const AccessControl*>(nullptr)}) {
    ServeWith([&](GrpcServerOptions& options) { options.access = asked; });
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer client");
    context.AddMetadata(kCallerHeader, "operator");
    v1::ForwardResponse response;
    EXPECT_THAT(transformer_->Forward(&context, TinyRequest(), &response), IsServed());
  }
  const std::vector<EndedRequest> ended = observer_.ended();
  ASSERT_EQ(ended.size(), 2u);
  EXPECT_EQ(ended[0].caller, "pipeline");
  EXPECT_EQ(ended[1].caller, "");
  server_.reset();
}

TEST_F(GateTest, WhyACallWasRefusedIsLoggedAtDebug) {
  std::ostringstream log;
  const auto outer = spdlog::default_logger();
  const auto inner = std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log));
  inner->set_level(spdlog::level::debug);
  spdlog::set_default_logger(inner);
  SomeTokens access;
  ServeWith([&](GrpcServerOptions& options) { options.access = &access; });
  EXPECT_THAT(ListModels(channel_, "other"), Refused(StatusCode::UNAUTHENTICATED, "unknown"));
  server_.reset();
  spdlog::set_default_logger(outer);
  EXPECT_THAT(log.str(), ::testing::HasSubstr("refused at the address of clients: unknown"));
}

TEST_F(GateTest, WhoWatchesHealthTakesNoCallsPlace) {
  SomeTokens access;
  access.Add("client", {Scope::kInfer}, {"pipeline"});
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  ServeWith([&](GrpcServerOptions& options) {
    options.access = &access;
    options.limits.max_calls = 1;
  });
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckResponse response;
  const auto health = grpc::health::v1::Health::NewStub(channel_);
  const auto watch = health->Watch(&context, {});
  EXPECT_TRUE(watch->Read(&response));
  EXPECT_THAT(ForwardWith("client"), IsServed());
  context.TryCancel();
  while (watch->Read(&response)) {
  }
  EXPECT_THAT(watch->Finish(), Refused(StatusCode::CANCELLED, ""));
  server_.reset();
}

TEST_F(GateTest, AConnectionOfManyWatchesIsAnswered) {
  ServeWith([](GrpcServerOptions&) {});
  const auto health = grpc::health::v1::Health::NewStub(channel_);
  std::array<grpc::ClientContext, 20> contexts;  // More than a connection has for itself.
  grpc::health::v1::HealthCheckResponse response;
  std::vector<std::unique_ptr<grpc::ClientReader<grpc::health::v1::HealthCheckResponse>>> watches;
  for (grpc::ClientContext& context : contexts) {
    watches.push_back(health->Watch(&context, {}));
    EXPECT_TRUE(watches.back()->Read(&response));
  }
  EXPECT_THAT(Check(channel_), IsServed());
  for (grpc::ClientContext& context : contexts) context.TryCancel();
  for (const auto& watch : watches) EXPECT_THAT(watch->Finish(), Refused(StatusCode::CANCELLED, ""));
  server_.reset();
}

TEST_F(GateTest, AProbesMessageIsAName) {
  ServeWith([](GrpcServerOptions&) {});
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(std::string(2000, 'a'));
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckResponse response;
  EXPECT_THAT(grpc::health::v1::Health::NewStub(channel_)->Check(&context, request, &response),
              Refused(StatusCode::RESOURCE_EXHAUSTED, "expected at most 1024"));
  server_.reset();
}

TEST_F(GateTest, ATokenTakesNoMoreCallsThanItMay) {
  SomeTokens access;
  access.Add("one", {Scope::kInfer, Scope::kRead}, {"greedy", /*max_calls=*/1});
  access.Add("two", {Scope::kRead}, {"modest"});
  ServeWith([&](GrpcServerOptions& options) { options.access = &access; });
  PendingForward pending(*transformer_, TinyRequest(), absl::InfiniteFuture(), "one");
  const auto call = engine_.WaitForCall();
  const grpc::Status refused = ListModels(channel_, "one");
  EXPECT_THAT(refused, Refused(StatusCode::RESOURCE_EXHAUSTED,
                               "max_calls: 1 calls are being served, which is the limit of the token of greedy"));
  EXPECT_TRUE(IsRetryable(refused));
  EXPECT_THAT(ListModels(channel_, "two"), IsServed());
  const std::map<absl::StatusCode, int64_t> once = {{absl::StatusCode::kResourceExhausted, 1}};
  EXPECT_EQ(server_->Figures().doors[0].refused, once);
  call->Answer(TinyResult());
  EXPECT_THAT(pending.Wait(), IsServed());
  EXPECT_THAT(ListModels(channel_, "one"), IsServed());
  server_.reset();
}

// An image of 512x512 pixels: a good 256 KiB.
v1::ForwardRequest LargeImage() {
  v1::ForwardRequest request = TinyRequest();
  *request.mutable_latents() = Ramp({1, 16, 64, 64});
  request.set_height(512);
  request.set_width(512);
  return request;
}

TEST_F(GateTest, AMessageWaitsUntilThoseOfOthersHaveLeftRoomForIt) {
  ServeWith([](GrpcServerOptions& options) {
    options.limits.message_bytes = 300'000;
    options.request_limits.max_side = 512;
  });
  PendingForward first(*transformer_, LargeImage());
  const auto call = engine_.WaitForCall();
  PendingForward second(*transformer_, LargeImage());
  while (server_->Figures().doors[0].calls < 2) {
  }
  EXPECT_EQ(engine_.submitted(), 1u);
  EXPECT_THAT(Forward(LargeRequest(10)), Refused(StatusCode::INVALID_ARGUMENT, "latents"));  // What is small goes on.
  call->Answer(TinyResult());
  EXPECT_THAT(first.Wait(), IsServed());
  engine_.WaitForCall(1)->Answer(TinyResult());
  EXPECT_THAT(second.Wait(), IsServed());
}

TEST_F(GateTest, RefusesAMessageThatHasNoRoomForTooLong) {
  ServeWith([](GrpcServerOptions& options) {
    options.limits.message_bytes = 300'000;
    options.request_limits.max_side = 512;
    options.timeouts.message_room = absl::Milliseconds(20);
  });
  PendingForward first(*transformer_, LargeImage());
  const auto call = engine_.WaitForCall();
  const grpc::Status refused = Forward(LargeImage());
  EXPECT_THAT(refused, Refused(StatusCode::RESOURCE_EXHAUSTED, "message_memory"));
  EXPECT_TRUE(IsRetryable(refused));
  const grpc::Status never = Forward(LargeRequest(301'000));
  EXPECT_THAT(never, Refused(StatusCode::RESOURCE_EXHAUSTED, "expected at most 300000, which is message_memory"));
  EXPECT_FALSE(IsRetryable(never));
  call->Answer(TinyResult());
  EXPECT_THAT(first.Wait(), IsServed());
}

TEST_F(GateTest, ATokensMessagesTakeNoMoreThanTheyMay) {
  SomeTokens access;
  access.Add("one", {Scope::kInfer}, {"greedy", 9, /*max_message_bytes=*/300'000});
  access.Add("two", {Scope::kInfer}, {"modest"});
  ServeWith([&](GrpcServerOptions& options) {
    options.access = &access;
    options.request_limits.max_side = 512;
    options.timeouts.message_room = absl::Milliseconds(20);
  });
  PendingForward first(*transformer_, LargeImage(), absl::InfiniteFuture(), "one");
  const auto call = engine_.WaitForCall();
  PendingForward second(*transformer_, LargeImage(), absl::InfiniteFuture(), "one");
  EXPECT_THAT(second.Wait(), Refused(StatusCode::RESOURCE_EXHAUSTED, "message_memory"));
  PendingForward other(*transformer_, LargeImage(), absl::InfiniteFuture(), "two");
  engine_.WaitForCall(1)->Answer(TinyResult());
  EXPECT_THAT(other.Wait(), IsServed());
  call->Answer(TinyResult());
  EXPECT_THAT(first.Wait(), IsServed());
  server_.reset();
}

TEST_F(GateTest, RefusesAMessageThatIsTooLargeForItsMethodBeforeItComes) {
  ServeWith([](GrpcServerOptions& options) { options.max_receive_message_bytes = 4096; });
  const grpc::Status refused = Forward(LargeRequest(50'000'000));
  EXPECT_THAT(refused, Refused(StatusCode::RESOURCE_EXHAUSTED, "request: 50"));
  EXPECT_THAT(refused, Refused(StatusCode::RESOURCE_EXHAUSTED, "expected at most 4096"));
  EXPECT_FALSE(IsRetryable(refused));
  grpc::ClientContext context;
  v1::GetModelRequest request;
  request.set_model(std::string(70'000, 'x'));
  v1::GetModelResponse response;
  EXPECT_THAT(v1::ModelService::NewStub(channel_)->GetModel(&context, request, &response),
              Refused(StatusCode::RESOURCE_EXHAUSTED, "expected at most 65536"));
}

TEST_F(GateTest, RefusesCompressedMessages) {
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::ForwardResponse response;
  EXPECT_THAT(transformer_->Forward(&context, LargeRequest(1'000'000), &response),
              Refused(StatusCode::UNIMPLEMENTED, "compressed messages are not taken"));
  EXPECT_EQ(engine_.submitted(), 0u);
}

// The field that a refused message is wrong in.
std::string FieldOf(const grpc::Status& status) {
  google::rpc::Status rich;
  google::rpc::BadRequest bad_request;
  rich.ParseFromString(status.error_details());
  for (const google::protobuf::Any& detail : rich.details()) detail.UnpackTo(&bad_request);
  return bad_request.field_violations_size() == 1 ? bad_request.field_violations(0).field() : "";
}

TEST_F(GateTest, RefusesAMessageThatWouldTakeManyTimesItsBytesBeforeGrpcParsesIt) {
  const auto times = [](int count, const std::string& text) {
    std::string repeated;
    for (int i = 0; i < count; ++i) repeated += text;
    return repeated;
  };
  const std::string inputs = times(1'000'000, std::string("\x2a\0", 2));
  EXPECT_EQ(FieldOf(CallMethod(channel_, "/inference.GRPCInferenceService/ModelInfer", inputs)), "inputs");
  const std::string unknown = times(30'000, "\x78\x01");  // 15: 1
  for (const auto& [channel, methods] :
       {std::pair(channel_, ClientMethods(1)), std::pair(admin_channel_, AdminMethods())}) {
    for (const auto& [path, method] : methods) {
      const grpc::Status status = CallMethod(channel, path, unknown);
      const StatusCode code = method.is_probe ? StatusCode::RESOURCE_EXHAUSTED : StatusCode::INVALID_ARGUMENT;
      EXPECT_THAT(status, Refused(code, "expected at most 1024")) << path;  // A probe's bytes, another's fields.
      EXPECT_EQ(FieldOf(status), path == "/ditserve.v1.DenoiseService/Denoise" ? "vram_limit_gib" : "request") << path;
    }
  }
  const auto others = static_cast<int64_t>(ClientMethods(1).size() - HealthMethods().size());
  EXPECT_EQ(server_->Figures().doors[0].refused[absl::StatusCode::kInvalidArgument], others + 1);
  EXPECT_THAT(observer_.codes(), ::testing::IsEmpty());
}

TEST_F(GateTest, RefusesAMessageThatIsNotInProtobufsWireFormat) {
  const grpc::Status status = CallMethod(channel_, "/ditserve.v1.TransformerService/Forward", "\x12\x03\x1a\x05");
  EXPECT_THAT(status, Refused(StatusCode::INVALID_ARGUMENT, "latents: has 3 bytes, more than what holds it"));
  EXPECT_EQ(FieldOf(status), "latents");
}

TEST_F(GateTest, RefusesTextThatGrpcWouldNotParse) {
  const grpc::Status status = CallMethod(channel_, "/ditserve.v1.TransformerService/Forward", "\x0a\x01\xff");
  EXPECT_THAT(status, Refused(StatusCode::INVALID_ARGUMENT, "model: is not in UTF-8"));
  EXPECT_EQ(FieldOf(status), "model");
}

TEST_F(GateTest, AnswersHealthAloneWhereThatIsServed) {
  SomeTokens access;
  const CertificateAuthority authority;
  ServeWith([&](GrpcServerOptions& options) {
    options.access = &access;
    options.tls = Files(authority.Issue("server"));
    options.health_address = "127.0.0.1:0";
  });
  const auto channel = grpc::CreateChannel(server_->health_address(), grpc::InsecureChannelCredentials());
  EXPECT_THAT(Check(channel), IsServed());
  EXPECT_THAT(ListModels(channel, ""), Refused(StatusCode::UNIMPLEMENTED, "is not served at this address"));
  server_.reset();
}

TEST_F(GateTest, TurnsAConnectionAwayWhereAllHaveCalls) {
  ServeWith([](GrpcServerOptions& options) { options.limits.max_connections = 1; });
  PendingForward accepted(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  EXPECT_THAT(CheckAnew(), Refused(StatusCode::UNAVAILABLE, ""));
  EXPECT_GE(server_->Figures().doors[0].turned_away, 1);
  call->Answer(TinyResult());
  EXPECT_THAT(accepted.Wait(), IsServed());
}

TEST_F(GateTest, WhoHasHadNoCallMakesRoomForWhoComes) {
  ServeWith([](GrpcServerOptions& options) { options.limits.max_connections = 2; });
  RawHttp2 first(server_->address()), second(server_->address());
  Greet(first);
  AwaitAnswer(first, "/ditserve.v1.ModelService/ListModels", 1);
  Greet(second);
  AwaitAnswer(second, kCheck, 1);  // Probes are no calls here.
  EXPECT_THAT(CheckAnew(), IsServed());
  RawHttp2::Frame frame;
  ASSERT_TRUE(second.Await(RawHttp2::kGoAway, frame));
  EXPECT_EQ(frame.payload.substr(4), RawHttp2::Number(0));  // No error.
  second.AwaitEnd();
  AwaitAnswer(first, kCheck, 3);
  EXPECT_EQ(server_->Figures().doors[0].turned_away, 1);
}

TEST_F(GateTest, WhoWatchesHealthKeepsNobodyOut) {
  ServeWith([](GrpcServerOptions& options) { options.limits.max_connections = 1; });
  RawHttp2 watching(server_->address());
  Greet(watching);
  Begin(watching, "/grpc.health.v1.Health/Watch");
  RawHttp2::Frame frame;
  ASSERT_TRUE(watching.Await(RawHttp2::kData, frame));
  EXPECT_THAT(CheckAnew(), IsServed());
  watching.AwaitEnd();
}

TEST_F(GateTest, EndsAlsoWhereItsTimerIsDue) {
  for (int i = 0; i < 50; ++i) {
    ServeWith([](GrpcServerOptions& options) { options.timeouts.tick = absl::Nanoseconds(1); });
    EXPECT_THAT(Check(channel_), IsServed());
  }
}

TEST_F(GateTest, ADrainingServerSendsConnectionsAwayAndAnswersHealthAndWhatItHasAccepted) {
  ServeWith([](GrpcServerOptions&) {});
  PendingForward accepted(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  RawHttp2 before(server_->address());
  before.Greet();
  server_->Drain();
  RawHttp2::Frame frame;
  ASSERT_TRUE(before.Await(RawHttp2::kGoAway, frame));
  EXPECT_EQ(frame.payload.substr(4), RawHttp2::Number(0));  // No error.
  before.AwaitEnd();
  RawHttp2 since(server_->address());
  since.Greet();
  ASSERT_TRUE(since.Await(RawHttp2::kGoAway, frame));
  since.AwaitEnd();
  while (!CheckAnew().ok()) {  // Until one is quick enough: here connections are sent away after milliseconds.
  }
  call->Answer(TinyResult());
  EXPECT_THAT(accepted.Wait(), IsServed());
}

TEST_F(GateTest, AClosedServerAnswersWhatItHasAccepted) {
  PendingForward accepted(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  std::thread stopping([&] { server_->Shutdown(absl::InfiniteDuration()); });
  while (CheckAnew().ok()) {  // Until it listens no longer.
  }
  call->Answer(TinyResult());
  EXPECT_THAT(accepted.Wait(), IsServed());
  stopping.join();
}

TEST_F(GateTest, CancelsWhatIsUnderWayWhenTheGraceIsOver) {
  PendingForward accepted(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  std::thread stopping([&] { server_->Shutdown(absl::Milliseconds(1)); });
  call->WaitForCancel();
  call->Answer(absl::CancelledError("stopping"));
  EXPECT_FALSE(accepted.Wait().ok());
  stopping.join();
}

}  // namespace
}  // namespace ditserve
