#ifndef DITSERVE_CORE_STORAGE_JSON_READER_H_
#define DITSERVE_CORE_STORAGE_JSON_READER_H_

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"

namespace ditserve {

// A name out of a file as a message may show it: printable and short.
std::string Printable(absl::string_view name);

struct JsonValue {
  enum class Kind { kObject, kArray, kString, kInteger, kNull, kOther };
  Kind kind;
  std::string text = {};  // Of a string.
  int64_t integer = 0;    // 0 to 2^63 - 1; other numbers are kOther.
};

// Reads JSON that others wrote, value by value. Unlike a document tree it sees duplicate keys, which it refuses, keeps
// nothing that its subclass does not keep, and bounds the nesting.
//
// Thread safety: thread-compatible.
class JsonReader : private nlohmann::json_sax<nlohmann::json> {
 public:
  // Errors: InvalidArgument if `text` is not JSON, and what the subclass returns.
  absl::Status Read(absl::string_view text);

 protected:
  // The keys that lead to the value at hand; "" for an element of an array.
  absl::Span<const std::string> path() const { return path_; }

  // Takes the value at path(). An object or array comes before what it holds; OnEnd follows that.
  virtual absl::Status OnValue(JsonValue value) = 0;
  virtual absl::Status OnEnd() { return absl::OkStatus(); }

 private:
  static constexpr size_t kMaxDepth = 32;

  bool null() override { return Value({JsonValue::Kind::kNull}); }
  bool boolean(bool) override { return Value({JsonValue::Kind::kOther}); }
  bool number_integer(number_integer_t) override { return Value({JsonValue::Kind::kOther}); }
  bool number_unsigned(number_unsigned_t value) override;
  bool number_float(number_float_t, const string_t&) override { return Value({JsonValue::Kind::kOther}); }
  bool string(string_t& value) override { return Value({JsonValue::Kind::kString, std::move(value)}); }
  bool binary(binary_t&) override { return Value({JsonValue::Kind::kOther}); }
  bool start_object(size_t) override { return Begin(JsonValue::Kind::kObject); }
  bool key(string_t& value) override;
  bool end_object() override { return End(); }
  bool start_array(size_t) override { return Begin(JsonValue::Kind::kArray); }
  bool end_array() override { return End(); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override;

  bool Value(JsonValue value);
  bool Begin(JsonValue::Kind kind);
  bool End();

  std::vector<std::string> path_;
  std::vector<std::set<std::string>> keys_;  // Of each open object.
  absl::Status status_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_STORAGE_JSON_READER_H_
