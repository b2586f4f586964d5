#include <ATen/ops/zeros.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>
#include <thread>
#include <vector>

#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

using grpc::StatusCode;

ForwardProgress ModulesDone(int modules) {
  ForwardProgress progress;
  progress.admitted = true;
  progress.modules_done = modules;
  progress.modules_total = 1'000'000;
  progress.disk_read_bytes = 3;
  progress.device_copy_bytes = 4;
  return progress;
}

class ForwardStreamTest : public ServerTest {
 protected:
  using Reader = std::unique_ptr<grpc::ClientReader<v1::ForwardStreamResponse>>;

  Reader Stream(const v1::ForwardRequest& request) { return Stream(request, context_); }
  Reader Stream(const v1::ForwardRequest& request, grpc::ClientContext& context) {
    v1::ForwardStreamRequest wrapped;
    *wrapped.mutable_request() = request;
    return transformer_->ForwardStream(&context, wrapped);
  }

  grpc::ClientContext context_;
};

TEST_F(ForwardStreamTest, ReportsProgressAndEndsWithTheResponse) {
  const Reader reader = Stream(TinyRequest());
  const auto call = engine_.WaitForCall();
  v1::ForwardStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(message.progress().stage(), v1::FORWARD_STAGE_QUEUED);
  EXPECT_EQ(message.progress().modules_total(), TinyModel().modules_used());

  call->Report(ModulesDone(2));
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(message.progress().stage(), v1::FORWARD_STAGE_RUNNING);
  EXPECT_EQ(message.progress().modules_done(), 2);
  EXPECT_EQ(message.progress().disk_read_bytes(), 3);
  EXPECT_EQ(message.progress().device_copy_bytes(), 4);

  call->Answer(TinyResult());
  ASSERT_TRUE(reader->Read(&message));
  ASSERT_TRUE(message.has_response());
  EXPECT_EQ(message.response().stats().riders(), 8);
  EXPECT_EQ(message.response().output().data().size(), 2 * 64 * sizeof(float));
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_THAT(reader->Finish(), IsServed());
}

TEST_F(ForwardStreamTest, TellsASlowClientOnlyTheNewestProgress) {
  constexpr int kReports = 200'000;
  const Reader reader = Stream(TinyRequest());
  const auto call = engine_.WaitForCall();
  for (int i = 1; i <= kReports; ++i) call->Report(ModulesDone(i));
  call->Answer(TinyResult());

  int reports = 0;
  int newest = 0;
  bool answered = false;
  v1::ForwardStreamResponse message;
  while (reader->Read(&message)) {
    EXPECT_FALSE(answered);
    answered = message.has_response();
    if (answered) continue;
    ++reports;
    EXPECT_GE(message.progress().modules_done(), newest);
    newest = message.progress().modules_done();
  }
  EXPECT_THAT(reader->Finish(), IsServed());
  EXPECT_TRUE(answered);
  EXPECT_LT(reports, kReports);
}

TEST_F(ForwardStreamTest, AnAnswersMemoryIsItsOwnUntilTheClientHasReadIt) {
  engine_.AnswerAtOnce([](const ForwardCall&) {
    ForwardResult result = TinyResult();
    result.output = at::zeros({1, 2, 3 << 17}, at::kFloat);  // 3 MiB: more than a client takes without reading.
    return result;
  });
  const Reader reader = Stream(TinyRequest());
  while (observer_.codes().empty()) {
  }
  EXPECT_EQ(server_->Figures().answer_bytes, 1024);
  v1::ForwardStreamResponse message;
  while (reader->Read(&message) && !message.has_response()) {
  }
  EXPECT_THAT(reader->Finish(), IsServed());
  while (server_->Figures().answer_bytes > 0) {
  }
}

TEST_F(ForwardStreamTest, AnswersACallThatIsDoneBeforeSubmitReturns) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  const Reader reader = Stream(TinyRequest());
  v1::ForwardStreamResponse message;
  while (reader->Read(&message) && !message.has_response()) {
  }
  EXPECT_TRUE(message.has_response());
  EXPECT_THAT(reader->Finish(), IsServed());
}

TEST_F(ForwardStreamTest, EndsWithTheEnginesError) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return absl::DataLossError("the checkpoint is damaged"); });
  const Reader reader = Stream(TinyRequest());
  v1::ForwardStreamResponse message;
  while (reader->Read(&message)) EXPECT_TRUE(message.has_progress());
  EXPECT_THAT(reader->Finish(), Refused(StatusCode::DATA_LOSS, "the checkpoint is damaged"));
}

TEST_F(ForwardStreamTest, LogsAnErrorOfOursOnce) {
  std::ostringstream log;
  const auto outer = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  engine_.AnswerAtOnce([](const ForwardCall&) { return absl::InternalError("a bug"); });
  const Reader reader = Stream(TinyRequest());
  v1::ForwardStreamResponse message;
  while (reader->Read(&message)) EXPECT_TRUE(message.has_progress());
  EXPECT_THAT(reader->Finish(), Refused(StatusCode::INTERNAL, ""));
  spdlog::set_default_logger(outer);
  const std::string text = log.str();
  EXPECT_NE(text.find("a bug"), std::string::npos) << text;
  EXPECT_EQ(text.find("a bug"), text.rfind("a bug")) << text;
}

// As ForwardTest's.
TEST_F(ForwardStreamTest, ADeadlineThatHasPassedIsNotCountedAsCancelled) {
  for (int64_t milliseconds = 1; engine_.submitted() == 0; milliseconds *= 2) {
    grpc::ClientContext context;
    SetServersDeadline(context, milliseconds);
    const Reader reader = Stream(TinyRequest(), context);
    v1::ForwardStreamResponse message;
    while (reader->Read(&message)) EXPECT_TRUE(message.has_progress());
    EXPECT_THAT(reader->Finish(), Refused(StatusCode::DEADLINE_EXCEEDED, ""));
  }
  engine_.WaitForCall()->WaitForCancel();
  server_->Shutdown(absl::InfiniteDuration());
  EXPECT_THAT(observer_.codes(), ::testing::Each(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(observer_.codes().empty());
}

TEST_F(ForwardStreamTest, RefusesAWrongRequestWithoutTheEngine) {
  const Reader reader = Stream(v1::ForwardRequest());
  v1::ForwardStreamResponse message;
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_THAT(reader->Finish(), Refused(StatusCode::INVALID_ARGUMENT, "height: 0"));
  EXPECT_EQ(engine_.submitted(), 0u);
}

TEST_F(ForwardStreamTest, EndsTheCallWhenTheClientCancels) {
  const Reader reader = Stream(TinyRequest());
  const auto call = engine_.WaitForCall();
  context_.TryCancel();
  call->WaitForCancel();
  EXPECT_THAT(reader->Finish(), Refused(StatusCode::CANCELLED, ""));
}

TEST_F(ForwardStreamTest, IsUnharmedByLateProgress) {
  const Reader reader = Stream(TinyRequest());
  const auto call = engine_.WaitForCall();
  call->Answer(TinyResult());
  v1::ForwardStreamResponse message;
  while (reader->Read(&message)) call->Report(ModulesDone(1));
  EXPECT_THAT(reader->Finish(), IsServed());
  server_->Shutdown(absl::InfiniteDuration());
  call->Report(ModulesDone(2));
}

TEST_F(ForwardStreamTest, SurvivesProgressAnswerAndCancelAtOnce) {
  for (size_t i = 0; i < 200; ++i) {
    grpc::ClientContext context;
    v1::ForwardStreamRequest request;
    *request.mutable_request() = TinyRequest();
    const Reader reader = transformer_->ForwardStream(&context, request);
    const auto call = engine_.WaitForCall(i);
    std::thread reporting([&] {
      for (int done = 1; done < 20; ++done) call->Report(ModulesDone(done));
    });
    std::thread answering([&] { call->Answer(TinyResult()); });
    const bool cancels = i % 2 == 0;
    if (cancels) context.TryCancel();
    v1::ForwardStreamResponse message;
    bool answered = false;
    while (reader->Read(&message)) answered |= message.has_response();
    const grpc::Status status = reader->Finish();
    reporting.join();
    answering.join();
    if (cancels) {
      EXPECT_THAT(status, ::testing::AnyOf(IsServed(), Refused(StatusCode::CANCELLED, ""))) << i;
    } else {
      EXPECT_THAT(status, IsServed()) << i;
      EXPECT_TRUE(answered) << i;
    }
  }
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  EXPECT_THAT(Forward(TinyRequest()), IsServed());
}

}  // namespace
}  // namespace ditserve
