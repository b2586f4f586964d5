#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <grpcpp/generic/generic_stub.h>

#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "core/base/error_details.h"
#include "google/protobuf/util/time_util.h"
#include "server/rpc/tensor_codec.h"
#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

using google::protobuf::util::TimeUtil;
using grpc::StatusCode;

using ForwardTest = ServerTest;

TEST_F(ForwardTest, AnswersWithOutputAndStats) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  v1::ForwardResponse response;
  ASSERT_THAT(Forward(TinyRequest(), &response), IsServed());
  v1::Tensor expected;
  ASSERT_TRUE(EncodeTensor(TinyResult().output, expected).ok());
  EXPECT_EQ(response.output().SerializeAsString(), expected.SerializeAsString());
  const v1::ForwardStats& stats = response.stats();
  EXPECT_EQ(TimeUtil::DurationToMilliseconds(stats.queue()), 1);
  EXPECT_EQ(TimeUtil::DurationToMilliseconds(stats.stall()), 20);
  EXPECT_EQ(TimeUtil::DurationToSeconds(stats.compute()), 3);
  EXPECT_EQ(TimeUtil::DurationToSeconds(stats.total()), 4);
  EXPECT_EQ(stats.disk_read_bytes(), 5);
  EXPECT_EQ(stats.device_copy_bytes(), 6);
  EXPECT_EQ(stats.peak_device_bytes(), 7);
  EXPECT_EQ(stats.riders(), 8);
  EXPECT_EQ(stats.non_finite_elements(), 9);
}

TEST_F(ForwardTest, TurnsPatchesIntoLatentsWhereAsked) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  v1::ForwardRequest request = TinyRequest();
  request.set_output_layout(v1::OUTPUT_LAYOUT_LATENTS);
  v1::ForwardResponse response;
  ASSERT_THAT(Forward(request, &response), IsServed());
  const absl::StatusOr<at::Tensor> output = ViewTensor(response.output(), "output");
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_TRUE(at::equal(*output, Unpatchify(TinyResult().output, TinyModel().config(), 32, 16)));
}

TEST_F(ForwardTest, GivesTheEngineTheRequestsBytes) {
  PendingForward pending(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  const at::Tensor& latents = call->forward().inputs.latents;
  EXPECT_EQ(std::string(static_cast<const char*>(latents.const_data_ptr()), latents.nbytes()),
            TinyRequest().latents().data());
  EXPECT_EQ(call->forward().deadline, absl::InfiniteFuture());
  call->Answer(TinyResult());
  EXPECT_THAT(pending.Wait(), IsServed());
}

TEST_F(ForwardTest, PassesOnTheEnginesErrors) {
  for (const absl::Status& error : {absl::NotFoundError("a"), absl::FailedPreconditionError("b"),
                                    absl::ResourceExhaustedError("c"), absl::DeadlineExceededError("d"),
                                    absl::CancelledError("e"), absl::DataLossError("f"), absl::UnavailableError("g")}) {
    engine_.AnswerAtOnce([&](const ForwardCall&) { return error; });
    EXPECT_THAT(Forward(TinyRequest()), Refused(static_cast<StatusCode>(error.code()), std::string(error.message())));
  }
}

TEST_F(ForwardTest, KeepsTheCauseOfAnInternalErrorToItself) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return absl::InternalError("/secret/path"); });
  const grpc::Status status = Forward(TinyRequest());
  EXPECT_THAT(status, Refused(StatusCode::INTERNAL, "internal error"));
  EXPECT_THAT(status.error_message(), ::testing::Not(::testing::HasSubstr("secret")));
}

TEST_F(ForwardTest, TellsWhenThereWillBeRoomWhereThatIsKnown) {
  engine_.AnswerAtOnce([](const ForwardCall&) {
    return WithRetryAfter(absl::ResourceExhaustedError("too many wait"), absl::Seconds(42));
  });
  PendingForward pending(*transformer_, TinyRequest());
  EXPECT_THAT(pending.Wait(), Refused(StatusCode::RESOURCE_EXHAUSTED, "too many wait"));
  const auto& trailers = pending.context.GetServerTrailingMetadata();
  ASSERT_EQ(trailers.count("grpc-retry-pushback-ms"), 1u);
  EXPECT_EQ(trailers.find("grpc-retry-pushback-ms")->second, "42000");
}

TEST_F(ForwardTest, HintsWhenToTryAgain) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return absl::ResourceExhaustedError("too many wait"); });
  PendingForward pending(*transformer_, TinyRequest());
  EXPECT_THAT(pending.Wait(), Refused(StatusCode::RESOURCE_EXHAUSTED, "too many wait"));
  EXPECT_EQ(pending.context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
}

TEST_F(ForwardTest, RefusesAWrongRequestWithoutTheEngine) {
  v1::ForwardRequest request = TinyRequest();
  request.set_height(17);
  EXPECT_THAT(Forward(request), Refused(StatusCode::INVALID_ARGUMENT, "height: 17"));
  request = TinyRequest();
  request.set_profile("missing");
  EXPECT_THAT(Forward(request), Refused(StatusCode::NOT_FOUND, "profile: \"missing\""));
  EXPECT_EQ(engine_.submitted(), 0u);
}

TEST_F(ForwardTest, EndsTheCallWhenTheClientCancels) {
  PendingForward pending(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  pending.context.TryCancel();
  call->WaitForCancel();
  EXPECT_THAT(pending.Wait(), Refused(StatusCode::CANCELLED, ""));
}

TEST_F(ForwardTest, IsUnharmedByACancelAfterTheEnd) {
  PendingForward pending(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  call->Answer(TinyResult());
  EXPECT_THAT(pending.Wait(), IsServed());
  pending.context.TryCancel();
  call->Cancel(absl::CancelledError("late"));
}

TEST_F(ForwardTest, SurvivesCancelsThatRaceWithAnswers) {
  for (size_t i = 0; i < 200; ++i) {
    PendingForward pending(*transformer_, TinyRequest());
    const auto call = engine_.WaitForCall(i);
    std::thread answering([&] { call->Answer(TinyResult()); });
    pending.context.TryCancel();
    answering.join();
  }
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  EXPECT_THAT(Forward(TinyRequest()), IsServed());
}

TEST_F(ForwardTest, PassesOnTheClientsDeadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Hours(1)));
  absl::Time deadline;
  engine_.AnswerAtOnce([&](const ForwardCall& call) {
    deadline = call.deadline;
    return TinyResult();
  });
  v1::ForwardResponse response;
  ASSERT_THAT(transformer_->Forward(&context, TinyRequest(), &response), IsServed());
  EXPECT_GT(deadline, absl::Now() + absl::Minutes(50));
  EXPECT_LT(deadline, absl::Now() + absl::Minutes(70));
}

TEST_F(ForwardTest, EndsTheCallAtTheClientsDeadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(100)));
  v1::ForwardResponse response;
  EXPECT_THAT(transformer_->Forward(&context, TinyRequest(), &response), Refused(StatusCode::DEADLINE_EXCEEDED, ""));
  if (engine_.submitted() > 0) engine_.WaitForCall()->WaitForCancel();
}

// A call whose deadline passes before the service sees it says nothing: then there is another.
TEST_F(ForwardTest, ADeadlineThatHasPassedIsNotCountedAsCancelled) {
  for (int64_t milliseconds = 1; engine_.submitted() == 0; milliseconds *= 2) {
    grpc::ClientContext context;
    SetServersDeadline(context, milliseconds);
    v1::ForwardResponse response;
    EXPECT_THAT(transformer_->Forward(&context, TinyRequest(), &response), Refused(StatusCode::DEADLINE_EXCEEDED, ""));
  }
  engine_.WaitForCall()->WaitForCancel();
  server_->Shutdown(absl::InfiniteDuration());
  EXPECT_THAT(observer_.codes(), ::testing::Each(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(observer_.codes().empty());
}

TEST_F(ForwardTest, ACallThatTheClientCancelsIsCountedAsCancelled) {
  PendingForward patient(*transformer_, TinyRequest());
  PendingForward hasty(*transformer_, TinyRequest(), absl::Now() + absl::Hours(1));
  engine_.WaitForCall(1);
  patient.context.TryCancel();
  hasty.context.TryCancel();
  server_->Shutdown(absl::InfiniteDuration());
  EXPECT_THAT(observer_.codes(), ::testing::ElementsAre(absl::StatusCode::kCancelled, absl::StatusCode::kCancelled));
}

// The engine's thread computes: what an answer takes to be encoded, others would wait for.
TEST_F(ForwardTest, EncodesOffTheEnginesThread) {
  PendingForward pending(*transformer_, TinyRequest());
  std::vector<float> values(2 * 64, 1.0f);
  std::thread::id freed_on;
  ForwardResult result = TinyResult();
  result.output = at::from_blob(
      values.data(), {1, 2, 64}, [&](void*) { freed_on = std::this_thread::get_id(); }, at::kFloat);
  engine_.WaitForCall()->Answer(std::move(result));
  EXPECT_THAT(pending.Wait(), IsServed());
  EXPECT_NE(freed_on, std::this_thread::get_id());
  EXPECT_NE(freed_on, std::thread::id());
  EXPECT_EQ(pending.response.output().data().size(), values.size() * sizeof(float));
}

TEST_F(ForwardTest, ServesAsManyCallsAsTheLimitAndRefusesMore) {
  std::vector<std::unique_ptr<PendingForward>> pending;
  for (int i = 0; i < kMaxConcurrentCalls; ++i) {
    v1::ForwardRequest request = TinyRequest();
    SetElement(*request.mutable_timestep(), 0, static_cast<float>(i) / kMaxConcurrentCalls);
    pending.push_back(std::make_unique<PendingForward>(*transformer_, request));
  }
  engine_.WaitForCall(kMaxConcurrentCalls - 1);
  EXPECT_THAT(Forward(TinyRequest()), Refused(StatusCode::RESOURCE_EXHAUSTED, "max_concurrent_calls: 64 calls"));
  for (int i = kMaxConcurrentCalls; i-- > 0;) {
    const auto call = engine_.WaitForCall(i);
    call->Answer(TinyResult(call->forward().inputs.timestep.item<float>() * kMaxConcurrentCalls));
  }
  for (int i = 0; i < kMaxConcurrentCalls; ++i) {
    ASSERT_THAT(pending[i]->Wait(), IsServed());
    v1::Tensor expected;
    ASSERT_TRUE(EncodeTensor(TinyResult(static_cast<float>(i)).output, expected).ok());
    EXPECT_EQ(pending[i]->response.output().data(), expected.data());
  }
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  EXPECT_THAT(Forward(TinyRequest()), IsServed());
}

TEST_F(ForwardTest, AnswersTakeNoMoreMemoryThanTheyMay) {
  constexpr int64_t kAnswer = 2 * 2 * 64 * sizeof(float);  // A TinyRequest's, and once more for gRPC.
  Serve(nullptr, [](GrpcServerOptions& options) { options.answer_bytes = 2 * kAnswer - 1; });
  PendingForward first(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  EXPECT_EQ(server_->Figures().answer_bytes, kAnswer);
  const grpc::Status refused = Forward(TinyRequest());
  EXPECT_THAT(refused, Refused(StatusCode::RESOURCE_EXHAUSTED, "answer_memory: of 2047 bytes 1024 are other calls'"));
  EXPECT_TRUE(IsRetryable(refused));
  const grpc::Status never = Forward(TinyRequest(/*batch=*/2));
  EXPECT_THAT(never, Refused(StatusCode::RESOURCE_EXHAUSTED, "its answer takes 2048 bytes, expected at most 2047"));
  EXPECT_FALSE(IsRetryable(never));
  EXPECT_EQ(engine_.submitted(), 1u);
  for (const EndedRequest& ended : observer_.ended()) EXPECT_EQ(ended.model, "tiny");
  call->Answer(TinyResult());
  EXPECT_THAT(first.Wait(), IsServed());
  while (server_->Figures().answer_bytes > 0) {
  }
}

TEST_F(ForwardTest, RefusesNewCallsWhileDraining) {
  PendingForward accepted(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  engine_.Drain(absl::InfiniteDuration());
  EXPECT_THAT(Forward(TinyRequest()), Refused(StatusCode::UNAVAILABLE, "stopping"));
  call->Answer(TinyResult());
  EXPECT_THAT(accepted.Wait(), IsServed());
}

TEST_F(ForwardTest, IsAnsweredDuringAShutdownThatGivesItTime) {
  PendingForward accepted(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  std::thread stopping([&] { server_->Shutdown(absl::Hours(1)); });
  call->Answer(TinyResult());
  EXPECT_THAT(accepted.Wait(), IsServed());
  stopping.join();
}

TEST_F(ForwardTest, IsCancelledByAShutdownThatGivesItNone) {
  PendingForward accepted(*transformer_, TinyRequest());
  const auto call = engine_.WaitForCall();
  server_->Shutdown(absl::ZeroDuration());
  call->WaitForCancel();
  EXPECT_FALSE(accepted.Wait().ok());
}

TEST_F(ForwardTest, RefusesRandomBytesAndGoesOn) {
  grpc::GenericStub stub(channel_);
  std::mt19937 random(7);
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  for (int i = 0; i < 100; ++i) {
    std::string bytes(1 + random() % 500, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::ClientContext context;
    grpc::Status status;
    absl::Notification done;
    stub.UnaryCall(&context, "/ditserve.v1.TransformerService/Forward", grpc::StubOptions(), &request, &response,
                   [&](grpc::Status ended) {
                     status = std::move(ended);
                     done.Notify();
                   });
    done.WaitForNotification();
    EXPECT_FALSE(status.ok());
  }
  EXPECT_EQ(engine_.submitted(), 0u);
  EXPECT_THAT(Forward(TinyRequest()), IsServed());
}

}  // namespace
}  // namespace ditserve
