#ifndef DITSERVE_SERVER_CONFIG_YAML_MAP_H_
#define DITSERVE_SERVER_CONFIG_YAML_MAP_H_

#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ditserve {

// Reads the keys of one YAML mapping and refuses all others. Errors are InvalidArgument and begin with
// "file:line:column: path.to.key: ".
//
// Thread safety: thread-compatible.
class YamlMap {
 public:
  // `path` is the mapping's own, "" for the document.
  YamlMap(const YAML::Node& node, std::string path, std::string file)
      : node_(node), path_(std::move(path)), file_(std::move(file)) {}

  // Parses a document, which must be a mapping and the only one.
  static absl::StatusOr<YamlMap> Parse(const std::string& text, const std::string& file);

  // Refuses what is no mapping, and keys that stand twice (yaml-cpp keeps the first silently).
  absl::Status Check() const;

  // Each leaves the target as it is if the key is not there, except ReadNullableString, for which that is null.
  absl::Status ReadString(const std::string& key, std::string* target);
  absl::Status ReadString(const std::string& key, std::optional<std::string>* target);
  absl::Status ReadNullableString(const std::string& key, std::optional<std::string>* target);
  absl::Status ReadInteger(const std::string& key, int64_t min, int64_t max, int64_t* target);
  absl::Status ReadInteger(const std::string& key, int min, int max, int* target);
  // May be null.
  absl::Status ReadNumber(const std::string& key, int64_t min, int64_t max, std::optional<double>* target);
  // A list of scalars, in place of what `target` held.
  absl::Status ReadStrings(const std::string& key, std::vector<std::string>* target);
  // The same, or one scalar alone.
  absl::Status ReadOneOrMore(const std::string& key, std::vector<std::string>* target);
  absl::Status ReadMap(const std::string& key, const std::function<absl::Status(YamlMap&)>& read);
  absl::Status ReadList(const std::string& key, const std::function<absl::Status(YamlMap&)>& read);
  // Calls `read` with each key and its mapping.
  absl::Status ReadEach(const std::function<absl::Status(const std::string& key, YamlMap& value)>& read);
  // Calls `read` with each key and its scalar.
  absl::Status ReadScalars(const std::function<absl::Status(const std::string& key, const std::string& value)>& read);

  // Refuses keys that nothing above has read.
  absl::Status RefuseOthers() const;

  // What errors begin with, "file:line:column: path.to.key: ", by key; the mapping's own for "".
  std::map<std::string, std::string> Places() const;

  // An error at `key`, or at the mapping itself for "".
  absl::Status Wrong(const std::string& key, absl::string_view what) const;

 private:
  // The value of `key`, which counts as known from now on; undefined if it is not there.
  YAML::Node Take(const std::string& key);
  absl::StatusOr<std::string> Scalar(const std::string& key, const YAML::Node& value) const;
  std::string PathOf(const std::string& key) const;

  YAML::Node node_;
  std::string path_;
  std::string file_;
  std::vector<std::string> known_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_CONFIG_YAML_MAP_H_
