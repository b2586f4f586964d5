#ifndef DITSERVE_SERVER_OBSERVE_JSON_LOG_H_
#define DITSERVE_SERVER_OBSERVE_JSON_LOG_H_

#include <spdlog/formatter.h>

#include <memory>

namespace ditserve {

// The logger whose messages are JSON objects: their fields become those of the line.
inline constexpr char kFieldsLogger[] = "fields";

// Makes an object of JSON of each message, a line: time (UTC, RFC 3339), level, message.
std::unique_ptr<spdlog::formatter> MakeJsonFormatter();

}  // namespace ditserve

#endif  // DITSERVE_SERVER_OBSERVE_JSON_LOG_H_
