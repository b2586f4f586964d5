#include "client/ditctl/json.h"

#include <google/protobuf/util/json_util.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace ditserve::ditctl {

namespace {

std::string Printed(const google::protobuf::Message& message, google::protobuf::util::JsonPrintOptions options) {
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  return status.ok() ? json : nlohmann::json({{"error", status.ToString()}}).dump() + "\n";
}

nlohmann::ordered_json AsJson(const google::protobuf::Message& message) {
  return nlohmann::ordered_json::parse(ToJson(message));
}

nlohmann::ordered_json OutputJson(const v1::Tensor& output, const Statistics& statistics,
                                  const v1::ForwardStats& stats) {
  const auto& shape = output.shape();
  nlohmann::ordered_json json;
  json["output"] = {{"dtype", DTypeName(output.dtype())},
                    {"shape", std::vector<int64_t>(shape.begin(), shape.end())},
                    {"mean", statistics.mean},
                    {"deviation", statistics.deviation},
                    {"min", statistics.min},
                    {"max", statistics.max},
                    {"non_finite", statistics.non_finite}};
  json["stats"] = AsJson(stats);
  return json;
}

}  // namespace

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  return Printed(message, options);
}

std::string ToJsonLine(const google::protobuf::Message& message) { return Printed(message, {}); }

std::string ForwardJson(const v1::ForwardResponse& response, const Statistics& statistics,
                        const v1::Residency* residency) {
  nlohmann::ordered_json json = OutputJson(response.output(), statistics, response.stats());
  if (residency != nullptr) json["residency"] = AsJson(*residency);
  return json.dump(1) + "\n";
}

std::string DenoiseJson(const v1::DenoiseResult& result, const Statistics& statistics) {
  nlohmann::ordered_json json = OutputJson(result.latents(), statistics, result.stats());
  json["reused_steps"] = nlohmann::ordered_json::array();
  for (const v1::ReusedStep& step : result.reused_steps()) json["reused_steps"].push_back(AsJson(step));
  return json.dump(1) + "\n";
}

}  // namespace ditserve::ditctl
