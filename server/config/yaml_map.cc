#include "server/config/yaml_map.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"

namespace ditserve {

absl::StatusOr<YamlMap> YamlMap::Parse(const std::string& text, const std::string& file) {
  std::vector<YAML::Node> documents;
  try {
    documents = YAML::LoadAll(text);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ":", error.mark.line + 1, ":", error.mark.column + 1, ": ", error.msg));
  }
  if (documents.size() > 1) {
    const YAML::Mark mark = documents[1].Mark();
    return absl::InvalidArgumentError(
        absl::StrCat(file, ":", mark.line + 1, ":", mark.column + 1, ": expected one document, found another"));
  }
  // An empty file changes nothing.
  const bool empty = documents.empty() || documents[0].IsNull();
  YamlMap map(empty ? YAML::Node(YAML::NodeType::Map) : documents[0], "", file);
  DITSERVE_RETURN_IF_ERROR(map.Check());
  return map;
}

absl::Status YamlMap::Check() const {
  if (!node_.IsMap()) return Wrong("", "expected keys and values");
  std::set<std::string> keys;
  for (const auto& entry : node_) {
    if (!entry.first.IsScalar()) return Wrong("", "keys must be plain words");
    if (!keys.insert(entry.first.Scalar()).second) return Wrong(entry.first.Scalar(), "the key stands twice");
  }
  return absl::OkStatus();
}

std::map<std::string, std::string> YamlMap::Places() const {
  std::map<std::string, std::string> places = {{"", std::string(Wrong("", "").message())}};
  for (const auto& entry : node_) places[entry.first.Scalar()] = std::string(Wrong(entry.first.Scalar(), "").message());
  return places;
}

absl::Status YamlMap::Wrong(const std::string& key, absl::string_view what) const {
  YAML::Mark mark = node_.Mark();
  for (const auto& entry : node_.IsMap() && !key.empty() ? node_ : YAML::Node(YAML::NodeType::Map)) {
    if (entry.first.IsScalar() && entry.first.Scalar() == key) mark = entry.first.Mark();
  }
  const std::string path = PathOf(key);
  return absl::InvalidArgumentError(
      absl::StrCat(file_, ":", mark.line + 1, ":", mark.column + 1, ": ", path, path.empty() ? "" : ": ", what));
}

std::string YamlMap::PathOf(const std::string& key) const {
  return path_.empty() || key.empty() ? path_ + key : absl::StrCat(path_, ".", key);
}

YAML::Node YamlMap::Take(const std::string& key) {
  known_.push_back(key);
  for (const auto& entry : node_) {
    if (entry.first.Scalar() == key) return entry.second;
  }
  return YAML::Node(YAML::NodeType::Undefined);
}

absl::StatusOr<std::string> YamlMap::Scalar(const std::string& key, const YAML::Node& value) const {
  if (!value.IsScalar()) return Wrong(key, "expected a single value");
  return value.Scalar();
}

absl::Status YamlMap::ReadString(const std::string& key, std::string* target) {
  const YAML::Node value = Take(key);
  if (!value.IsDefined()) return absl::OkStatus();
  DITSERVE_ASSIGN_OR_RETURN(*target, Scalar(key, value));
  return absl::OkStatus();
}

absl::Status YamlMap::ReadString(const std::string& key, std::optional<std::string>* target) {
  const YAML::Node value = Take(key);
  if (!value.IsDefined()) return absl::OkStatus();
  DITSERVE_ASSIGN_OR_RETURN(*target, Scalar(key, value));
  return absl::OkStatus();
}

absl::Status YamlMap::ReadNullableString(const std::string& key, std::optional<std::string>* target) {
  const YAML::Node value = Take(key);
  target->reset();
  if (!value.IsDefined() || value.IsNull()) return absl::OkStatus();
  DITSERVE_ASSIGN_OR_RETURN(*target, Scalar(key, value));
  return absl::OkStatus();
}

absl::Status YamlMap::ReadInteger(const std::string& key, int64_t min, int64_t max, int64_t* target) {
  const YAML::Node value = Take(key);
  if (!value.IsDefined()) return absl::OkStatus();
  DITSERVE_ASSIGN_OR_RETURN(const std::string text, Scalar(key, value));
  int64_t number = 0;
  if (!absl::SimpleAtoi(text, &number) || number < min || number > max) {
    return Wrong(key, absl::StrCat("expected an integer from ", min, " to ", max, ", found '",
                                   absl::CHexEscape(text.substr(0, 64)), "'"));
  }
  *target = number;
  return absl::OkStatus();
}

absl::Status YamlMap::ReadInteger(const std::string& key, int min, int max, int* target) {
  int64_t number = *target;
  DITSERVE_RETURN_IF_ERROR(ReadInteger(key, int64_t{min}, int64_t{max}, &number));
  *target = static_cast<int>(number);
  return absl::OkStatus();
}

absl::Status YamlMap::ReadNumber(const std::string& key, int64_t min, int64_t max, std::optional<double>* target) {
  const YAML::Node value = Take(key);
  if (!value.IsDefined()) return absl::OkStatus();
  if (value.IsNull()) {
    target->reset();
    return absl::OkStatus();
  }
  DITSERVE_ASSIGN_OR_RETURN(const std::string text, Scalar(key, value));
  double number = 0;
  if (!absl::SimpleAtod(text, &number) || !(number >= static_cast<double>(min) && number <= static_cast<double>(max))) {
    return Wrong(key, absl::StrCat("expected a number from ", min, " to ", max, ", found '",
                                   absl::CHexEscape(text.substr(0, 64)), "'"));
  }
  *target = number;
  return absl::OkStatus();
}

absl::Status YamlMap::ReadStrings(const std::string& key, std::vector<std::string>* target) {
  const YAML::Node value = Take(key);
  if (!value.IsDefined()) return absl::OkStatus();
  if (!value.IsSequence()) return Wrong(key, "expected a list");
  target->clear();
  for (const YAML::Node& item : value) {
    DITSERVE_ASSIGN_OR_RETURN(std::string text, Scalar(key, item));
    target->push_back(std::move(text));
  }
  return absl::OkStatus();
}

absl::Status YamlMap::ReadOneOrMore(const std::string& key, std::vector<std::string>* target) {
  const YAML::Node value = Take(key);
  if (!value.IsDefined() || value.IsSequence()) return ReadStrings(key, target);
  DITSERVE_ASSIGN_OR_RETURN(std::string text, Scalar(key, value));
  *target = {std::move(text)};
  return absl::OkStatus();
}

absl::Status YamlMap::ReadMap(const std::string& key, const std::function<absl::Status(YamlMap&)>& read) {
  const YAML::Node value = Take(key);
  if (!value.IsDefined()) return absl::OkStatus();
  YamlMap map(value, PathOf(key), file_);
  DITSERVE_RETURN_IF_ERROR(map.Check());
  return read(map);
}

absl::Status YamlMap::ReadList(const std::string& key, const std::function<absl::Status(YamlMap&)>& read) {
  const YAML::Node value = Take(key);
  if (!value.IsDefined()) return absl::OkStatus();
  if (!value.IsSequence()) return Wrong(key, "expected a list");
  for (size_t i = 0; i < value.size(); ++i) {
    YamlMap map(value[i], absl::StrCat(PathOf(key), "[", i, "]"), file_);
    DITSERVE_RETURN_IF_ERROR(map.Check());
    DITSERVE_RETURN_IF_ERROR(read(map));
  }
  return absl::OkStatus();
}

absl::Status YamlMap::ReadEach(const std::function<absl::Status(const std::string& key, YamlMap& value)>& read) {
  for (const auto& entry : node_) {
    const std::string& key = entry.first.Scalar();
    DITSERVE_RETURN_IF_ERROR(ReadMap(key, [&](YamlMap& map) { return read(key, map); }));
  }
  return absl::OkStatus();
}

absl::Status YamlMap::ReadScalars(
    const std::function<absl::Status(const std::string& key, const std::string& value)>& read) {
  for (const auto& entry : node_) {
    known_.push_back(entry.first.Scalar());
    DITSERVE_ASSIGN_OR_RETURN(const std::string value, Scalar(entry.first.Scalar(), entry.second));
    DITSERVE_RETURN_IF_ERROR(read(entry.first.Scalar(), value));
  }
  return absl::OkStatus();
}

absl::Status YamlMap::RefuseOthers() const {
  for (const auto& entry : node_) {
    const std::string& key = entry.first.Scalar();
    if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
      return Wrong(key, absl::StrCat("unknown key; valid: ", absl::StrJoin(known_, ", ")));
    }
  }
  return absl::OkStatus();
}

}  // namespace ditserve
