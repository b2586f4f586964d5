#include "server/observe/logging.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <utility>

#include "server/observe/json_log.h"

namespace ditserve {
namespace {

// gRPC's own lines go where ours go; what it calls an error is news to nobody but a developer.
void LogFromGrpc(gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); }

// protobuf complains of a malformed message; it is the client's error, and it is told.
void LogFromProtobuf(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  spdlog::debug("protobuf: {}", message);
}

}  // namespace

RequestLines StartLogging(const std::string& level, RequestLog::Form form) {
  constexpr size_t kMostLines = 4096;
  const bool json = form == RequestLog::Form::kJson;
  const std::shared_ptr<spdlog::logger> logger = spdlog::stderr_color_mt("ditserve");
  if (json) logger->set_formatter(MakeJsonFormatter());
  auto writer = std::make_shared<spdlog::details::thread_pool>(kMostLines, 1);
  auto lines = std::make_shared<spdlog::async_logger>(json ? kFieldsLogger : "requests", logger->sinks().front(),
                                                      writer, spdlog::async_overflow_policy::overrun_oldest);
  spdlog::register_logger(lines);
  spdlog::set_default_logger(logger);
  spdlog::set_level(spdlog::level::from_str(level));
  gpr_set_log_function(LogFromGrpc);
  google::protobuf::SetLogHandler(LogFromProtobuf);
  return {std::move(writer), std::make_unique<RequestLog>(lines, form)};
}

}  // namespace ditserve
