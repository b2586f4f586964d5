#include "client/ditctl/json.h"

#include <google/protobuf/util/json_util.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace ditserve::ditctl {

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  return status.ok() ? json : nlohmann::json({{"error", status.ToString()}}).dump() + "\n";
}

std::string ForwardJson(const v1::ForwardResponse& response, const Statistics& statistics,
                        const v1::Residency* residency) {
  const auto& shape = response.output().shape();
  nlohmann::ordered_json json;
  json["output"] = {{"dtype", DTypeName(response.output().dtype())},
                    {"shape", std::vector<int64_t>(shape.begin(), shape.end())},
                    {"mean", statistics.mean},
                    {"deviation", statistics.deviation},
                    {"min", statistics.min},
                    {"max", statistics.max},
                    {"non_finite", statistics.non_finite}};
  json["stats"] = nlohmann::ordered_json::parse(ToJson(response.stats()));
  if (residency != nullptr) json["residency"] = nlohmann::ordered_json::parse(ToJson(*residency));
  return json.dump(1) + "\n";
}

}  // namespace ditserve::ditctl
