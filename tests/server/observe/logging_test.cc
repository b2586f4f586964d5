#include "server/observe/logging.h"

#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace ditserve {
namespace {

using ::testing::ElementsAre;

// (One test: it is to be called once in a process.)
TEST(LoggingTest, EveryLineIsAnObjectAndGrpcsOwnAreForDevelopers) {
  ::testing::internal::CaptureStderr();
  RequestLines requests = StartLogging("debug", RequestLog::Form::kJson);
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);  // As gRPC sets it when it begins.
  spdlog::warn("of ours");
  gpr_log(GPR_ERROR, "a stream of %s", "gRPC's");
  GOOGLE_LOG(ERROR) << "a message of protobuf's";
  requests.log->OnEnd({.rpc = "Forward", .model = "qwen"});
  requests.writer.reset();  // It ends with what was told.
  std::istringstream lines(::testing::internal::GetCapturedStderr());
  std::vector<std::string> told;
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json object = nlohmann::json::parse(line);
    told.push_back(object["level"].get<std::string>() + " " + object["message"].get<std::string>());
  }
  EXPECT_THAT(told, ElementsAre("warning of ours", "debug grpc: a stream of gRPC's",
                                "debug protobuf: a message of protobuf's", "info request"));
}

}  // namespace
}  // namespace ditserve
