#include "server/observe/request_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "server/observe/json_log.h"

namespace ditserve {
namespace {

class RequestLogTest : public ::testing::Test {
 protected:
  RequestLogTest() {
    account_.queue = absl::Milliseconds(500);
    account_.stall = absl::Seconds(1);
    account_.compute = absl::Seconds(2);
    account_.disk_read_bytes = int64_t{41} << 30;
    account_.riders = 3;
    answered_ = {.rpc = "Forward",
                 .model = "qwen",
                 .profile = "disk",
                 .caller = "studio",
                 .trace_id = "4bf92f3577b34da6a3ce929d0e0e4736",
                 .parent_id = "00f067aa0ba902b7",
                 .duration = absl::Seconds(4),
                 .account = &account_};
    sink_->set_pattern("%l %v");
  }

  std::string TextOf(const EndedRequest& request) {
    RequestLog(std::make_shared<spdlog::logger>("any", sink_), RequestLog::Form::kText).OnEnd(request);
    return lines_.str();
  }

  nlohmann::json JsonOf(const EndedRequest& request) {
    sink_->set_formatter(MakeJsonFormatter());
    RequestLog(std::make_shared<spdlog::logger>(kFieldsLogger, sink_), RequestLog::Form::kJson).OnEnd(request);
    return nlohmann::json::parse(lines_.str());
  }

  ForwardAccount account_;
  EndedRequest answered_;
  std::ostringstream lines_;
  const std::shared_ptr<spdlog::sinks::ostream_sink_mt> sink_ =
      std::make_shared<spdlog::sinks::ostream_sink_mt>(lines_);
};

TEST_F(RequestLogTest, TellsTheAccountAndTheTrace) {
  const nlohmann::json line = JsonOf(answered_);
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["message"], "request");
  EXPECT_EQ(line["rpc"], "Forward");
  EXPECT_EQ(line["code"], "OK");
  EXPECT_EQ(line["model"], "qwen");
  EXPECT_EQ(line["profile"], "disk");
  EXPECT_EQ(line["caller"], "studio");
  EXPECT_EQ(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(line["parent_span_id"], "00f067aa0ba902b7");
  EXPECT_EQ(line["seconds"], 4);
  EXPECT_EQ(line["queue_seconds"], 0.5);
  EXPECT_EQ(line["stall_seconds"], 1);
  EXPECT_EQ(line["compute_seconds"], 2);
  EXPECT_EQ(line["disk_read_bytes"], int64_t{41} << 30);
  EXPECT_EQ(line["riders"], 3);
  EXPECT_FALSE(line.contains("error"));
  EXPECT_THAT(line["time"].get<std::string>(),
              ::testing::MatchesRegex("20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z"));
}

TEST_F(RequestLogTest, TellsTheStepsOfALoopAndOfNoPass) {
  EXPECT_FALSE(JsonOf(answered_).contains("steps"));
  lines_.str("");
  answered_.steps = 50;
  EXPECT_EQ(JsonOf(answered_)["steps"], 50);
}

TEST_F(RequestLogTest, TellsTheErrorOfARequestThatWasRefused) {
  const nlohmann::json line = JsonOf(
      {.rpc = "ModelInfer", .code = absl::StatusCode::kResourceExhausted, .message = "a \"word\"\n\xff of a client"});
  EXPECT_EQ(line["level"], "warning");
  EXPECT_EQ(line["code"], "RESOURCE_EXHAUSTED");
  EXPECT_EQ(line["error"], "a \"word\"\n\uFFFD of a client");
  EXPECT_FALSE(line.contains("model"));
  EXPECT_FALSE(line.contains("queue_seconds"));
  EXPECT_FALSE(line.contains("trace_id"));
  EXPECT_FALSE(line.contains("caller")) << "nobody was asked";
}

TEST_F(RequestLogTest, TheFaultsThatAreOursAreErrors) {
  for (const absl::StatusCode code : {absl::StatusCode::kInternal, absl::StatusCode::kDataLoss}) {
    lines_.str("");
    EXPECT_THAT(TextOf({.rpc = "Forward", .code = code}), ::testing::StartsWith("error request rpc=\"Forward\""));
  }
}

TEST_F(RequestLogTest, ALineOfTextIsOneLine) {
  const std::string text = TextOf({.rpc = "Forward",
                                   .code = absl::StatusCode::kNotFound,
                                   .message = "model: \"x\"\n2026-01-01 forged",
                                   .model = "a b",
                                   .caller = "studio"});
  EXPECT_EQ(
      text,
      "info request rpc=\"Forward\" code=\"NOT_FOUND\" seconds=0.0 error=\"model: \\\"x\\\"\\n2026-01-01 forged\" "
      "model=\"a b\" caller=\"studio\"\n");
}

TEST_F(RequestLogTest, OtherMessagesAreObjectsToo) {
  sink_->set_formatter(MakeJsonFormatter());
  spdlog::logger logger("ditserve", sink_);
  logger.warn("{} is \"quoted\"\n{}", "this", "{not: json}");
  const nlohmann::json line = nlohmann::json::parse(lines_.str());
  EXPECT_EQ(line["level"], "warning");
  EXPECT_EQ(line["message"], "this is \"quoted\"\n{not: json}");
}

TEST_F(RequestLogTest, SaysNothingBelowTheLevel) {
  auto logger = std::make_shared<spdlog::logger>("any", sink_);
  logger->set_level(spdlog::level::warn);
  RequestLog(logger, RequestLog::Form::kText).OnEnd(answered_);
  EXPECT_EQ(lines_.str(), "");
}

}  // namespace
}  // namespace ditserve
