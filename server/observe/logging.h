#ifndef DITSERVE_SERVER_OBSERVE_LOGGING_H_
#define DITSERVE_SERVER_OBSERVE_LOGGING_H_

#include <spdlog/async.h>

#include <memory>
#include <string>

#include "server/observe/request_log.h"

namespace ditserve {

// Of each request a line, written by a thread of its own: a log that is read slowly, or not at all, loses some of them
// and holds no request up.
struct RequestLines {
  std::shared_ptr<spdlog::details::thread_pool> writer;
  std::unique_ptr<RequestLog> log;
};

// Logs to standard error, from `level` ("debug", "info", "warn", "error") on, in this form: the server's lines, those
// of requests, and at level debug gRPC's and protobuf's own. To be called once.
RequestLines StartLogging(const std::string& level, RequestLog::Form form);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_OBSERVE_LOGGING_H_
