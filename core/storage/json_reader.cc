#include "core/storage/json_reader.h"

#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace ditserve {

std::string Printable(absl::string_view name) {
  constexpr size_t kMaxShown = 200;
  return absl::StrCat(absl::Utf8SafeCHexEscape(name.substr(0, kMaxShown)), name.size() > kMaxShown ? "..." : "");
}

absl::Status JsonReader::Read(absl::string_view text) {
  // The parser would take a NUL for the end and a byte order mark for nothing.
  const size_t nul = text.find('\0');
  if (nul != absl::string_view::npos) return absl::InvalidArgumentError(absl::StrCat("a NUL at byte ", nul));
  path_.clear();
  keys_.clear();
  status_ = absl::OkStatus();
  nlohmann::json_sax<nlohmann::json>* const sax = this;
  nlohmann::json::sax_parse(text.begin(), text.end(), sax);
  return status_;
}

bool JsonReader::number_unsigned(number_unsigned_t value) {
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Value({JsonValue::Kind::kOther});
  return Value({JsonValue::Kind::kInteger, {}, static_cast<int64_t>(value)});
}

bool JsonReader::key(string_t& value) {
  path_.back() = value;
  if (keys_.back().insert(std::move(value)).second) return true;
  status_ = absl::InvalidArgumentError(
      absl::StrCat("the key '", Printable(absl::StrJoin(path_, ".")), "' stands there twice"));
  return false;
}

bool JsonReader::parse_error(size_t position, const std::string&, const nlohmann::json::exception&) {
  status_ = absl::InvalidArgumentError(absl::StrCat("not JSON at byte ", position));
  return false;
}

bool JsonReader::Value(JsonValue value) {
  status_ = OnValue(std::move(value));
  return status_.ok();
}

bool JsonReader::Begin(JsonValue::Kind kind) {
  if (path_.size() == kMaxDepth) {
    status_ = absl::InvalidArgumentError(absl::StrCat("nested more than ", kMaxDepth, " levels deep"));
    return false;
  }
  if (!Value({kind})) return false;
  path_.emplace_back();
  keys_.emplace_back();
  return true;
}

bool JsonReader::End() {
  path_.pop_back();
  keys_.pop_back();
  status_ = OnEnd();
  return status_.ok();
}

}  // namespace ditserve
