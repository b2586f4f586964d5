#include "server/observe/request_log.h"

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace ditserve {
namespace {

using Json = nlohmann::ordered_json;

// What an operator should look at.
spdlog::level::level_enum LevelOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return spdlog::level::err;
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return spdlog::level::warn;
    default:
      return spdlog::level::info;
  }
}

void AddAccount(const ForwardAccount& account, Json& fields) {
  fields["device"] = account.device;
  fields["queue_seconds"] = absl::ToDoubleSeconds(account.queue);
  fields["stall_seconds"] = absl::ToDoubleSeconds(account.stall);
  fields["compute_seconds"] = absl::ToDoubleSeconds(account.compute);
  fields["disk_read_bytes"] = account.disk_read_bytes;
  fields["device_copy_bytes"] = account.device_copy_bytes;
  fields["peak_device_bytes"] = account.peak_device_bytes;
  fields["riders"] = account.riders;
  fields["non_finite_elements"] = account.non_finite_elements;
}

Json FieldsOf(const EndedRequest& request) {
  Json fields = {{"message", "request"},
                 {"rpc", request.rpc},
                 {"code", absl::StatusCodeToString(request.code)},
                 {"seconds", absl::ToDoubleSeconds(request.duration)}};
  if (request.steps > 0) fields["steps"] = request.steps;
  for (const auto& [name, value] : {std::pair("error", &request.message),
                                    {"model", &request.model},
                                    {"profile", &request.profile},
                                    {"caller", &request.caller},
                                    {"trace_id", &request.trace_id},
                                    {"parent_span_id", &request.parent_id}}) {
    if (!value->empty()) fields[name] = *value;
  }
  if (request.account != nullptr) AddAccount(*request.account, fields);
  return fields;
}

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// `message` first, then the others as name=value; strings as JSON writes them, so that each stays within its quotes.
std::string Text(const Json& fields) {
  std::string text;
  for (const auto& [name, value] : fields.items()) {
    absl::StrAppend(&text, text.empty() ? value.get<std::string>() : absl::StrCat(" ", name, "=", Dump(value)));
  }
  return text;
}

}  // namespace

void RequestLog::OnEnd(const EndedRequest& request) {
  const spdlog::level::level_enum level = LevelOf(request.code);
  if (!logger_->should_log(level)) return;
  const Json fields = FieldsOf(request);
  logger_->log(level, form_ == Form::kJson ? Dump(fields) : Text(fields));
}

}  // namespace ditserve
