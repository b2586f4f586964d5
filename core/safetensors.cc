#include "core/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/status_macros.h"
#include "nlohmann/json.hpp"

namespace ditserve {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 4096;

// A name as it may be shown: printable and short.
std::string Shown(absl::string_view name) { return absl::CHexEscape(name.substr(0, 200)); }

// Takes the header apart while it is parsed, so that duplicate keys are seen and nothing is nested deeper than it may.
//
//   depth 1: {"name": ..., "__metadata__": ...}   depth 2: {"dtype", "shape", "data_offsets"} or {string: string}
//   depth 3 and below: arrays of integers, or what an unknown field holds, which is passed over
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  struct RawTensor {
    std::string name;
    std::optional<std::string> dtype;
    std::optional<std::vector<int64_t>> shape;
    std::optional<std::vector<int64_t>> offsets;
  };

  bool null() override {
    if (depth_ == 1 && key_ == "__metadata__") return true;
    return Scalar("null");
  }
  bool boolean(bool) override { return Scalar("a boolean"); }
  bool number_integer(number_integer_t) override { return Scalar("a negative number"); }
  bool number_unsigned(number_unsigned_t value) override {
    if (passing_over_ > 0) return true;
    if (array_ == nullptr) return Scalar("a number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(absl::StrCat(field_, " holds ", value, ", which is larger than 2^63 - 1"));
    }
    if (array_->size() == kMaxRank) return Fail(absl::StrCat(field_, " has more than ", kMaxRank, " entries"));
    array_->push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_float(number_float_t, const string_t&) override { return Scalar("a number that is no integer"); }
  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      metadata_[field_] = value;
      return true;
    }
    if (depth_ == 2 && field_ == "dtype") {
      tensors_.back().dtype = value;
      return true;
    }
    return Scalar("a string");
  }
  bool binary(binary_t&) override { return Scalar("binary data"); }

  bool start_object(size_t) override {
    if (passing_over_ > 0) return Deeper();
    ++depth_;
    if (depth_ == 1) return true;
    if (depth_ == 2) {
      in_metadata_ = key_ == "__metadata__";
      if (!in_metadata_) tensors_.push_back({key_});
      fields_.clear();
      return true;
    }
    return PassOver("an object");
  }
  bool key(string_t& value) override {
    if (passing_over_ > 0) return true;
    if (depth_ == 1) {
      key_ = value;
      in_metadata_ = false;
      if (!keys_.insert(value).second) return Fail("the name stands twice");
      return true;
    }
    field_ = value;
    if (!fields_.insert(value).second) return Fail(absl::StrCat("the field '", Shown(value), "' stands twice"));
    return true;
  }
  bool end_object() override { return End(); }

  bool start_array(size_t) override {
    if (passing_over_ > 0) return Deeper();
    ++depth_;
    if (depth_ == 1) return Fail("the header is an array, not an object");
    if (depth_ == 3 && !in_metadata_ && (field_ == "shape" || field_ == "data_offsets")) {
      RawTensor& tensor = tensors_.back();
      array_ = &(field_ == "shape" ? tensor.shape : tensor.offsets).emplace();
      return true;
    }
    return PassOver("an array");
  }
  bool end_array() override { return End(); }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    key_.clear();
    return Fail(absl::StrCat("the header is not JSON at byte ", position));
  }

  std::vector<RawTensor>& tensors() { return tensors_; }
  std::map<std::string, std::string>& metadata() { return metadata_; }
  const std::string& error() const { return error_; }

 private:
  static constexpr int kMaxDepth = 64;

  bool Known() const {
    return depth_ < 2 || in_metadata_ || field_ == "dtype" || field_ == "shape" || field_ == "data_offsets";
  }
  // A scalar where the format has none; unknown fields may hold anything.
  bool Scalar(absl::string_view found) {
    if (passing_over_ > 0 || (array_ == nullptr && !Known())) return true;
    if (depth_ == 0) return Fail(absl::StrCat("the header is ", found, ", not an object"));
    return Fail(absl::StrCat(depth_ >= 2 ? Shown(field_) : "its entry", " is ", found));
  }
  bool PassOver(absl::string_view found) {
    if (array_ != nullptr || Known()) return Scalar(found);
    passing_over_ = 1;
    return true;
  }
  bool Deeper() { return ++passing_over_ < kMaxDepth || Fail("the header is nested too deeply"); }
  bool End() {
    if (passing_over_ > 1) {
      --passing_over_;
      return true;
    }
    passing_over_ = 0;
    array_ = nullptr;
    --depth_;
    return true;
  }
  bool Fail(absl::string_view what) {
    error_ = key_.empty() ? std::string(what) : absl::StrCat("tensor '", Shown(key_), "': ", what);
    return false;
  }

  int depth_ = 0;
  int passing_over_ = 0;  // Levels inside an unknown field.
  bool in_metadata_ = false;
  std::string key_, field_, error_;
  std::vector<int64_t>* array_ = nullptr;
  std::set<std::string> keys_, fields_;
  std::vector<RawTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

absl::Status CheckName(const std::string& name) {
  const bool unsafe = name.empty() || name.size() > kMaxNameBytes || name.find('\0') != std::string::npos ||
                      name.find('/') != std::string::npos || name.find('\\') != std::string::npos || name == ".." ||
                      name == ".";
  if (!unsafe) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tensor name '", Shown(name), "' is empty, too long, or has a NUL or path part"));
}

// Bytes of a tensor; nullopt if they are more than 2^63 - 1.
std::optional<int64_t> BytesOf(const std::vector<int64_t>& shape, DType dtype) {
  int64_t bytes = SizeOf(dtype);
  for (const int64_t length : shape) {
    if (__builtin_mul_overflow(bytes, length, &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::StatusOr<TensorEntry> CheckTensor(HeaderReader::RawTensor& raw, int64_t data_begin) {
  DITSERVE_RETURN_IF_ERROR(CheckName(raw.name));
  const std::string tensor = absl::StrCat("tensor '", Shown(raw.name), "': ");
  if (!raw.dtype || !raw.shape || !raw.offsets) {
    return absl::InvalidArgumentError(absl::StrCat(tensor, "dtype, shape and data_offsets are needed"));
  }
  const std::optional<DType> dtype = DTypeFromSafetensors(*raw.dtype);
  if (!dtype) return absl::InvalidArgumentError(absl::StrCat(tensor, "unknown dtype '", Shown(*raw.dtype), "'"));
  if (raw.offsets->size() != 2 || (*raw.offsets)[1] < (*raw.offsets)[0]) {
    return absl::InvalidArgumentError(absl::StrCat(tensor, "data_offsets must be [begin, end] with begin <= end"));
  }
  const int64_t size = (*raw.offsets)[1] - (*raw.offsets)[0];
  const std::optional<int64_t> expected = BytesOf(*raw.shape, *dtype);
  if (!expected || *expected != size) {
    return absl::InvalidArgumentError(absl::StrCat(tensor, "data_offsets hold ", size,
                                                   " bytes, its shape and dtype take ",
                                                   expected ? absl::StrCat(*expected) : std::string("more than 2^63")));
  }
  int64_t offset;
  if (__builtin_add_overflow((*raw.offsets)[0], data_begin, &offset)) {
    return absl::InvalidArgumentError(absl::StrCat(tensor, "data_offsets lie outside of the file"));
  }
  return TensorEntry{std::move(raw.name), *dtype, *std::move(raw.shape), offset, size};
}

absl::Status CheckCoverage(const std::vector<TensorEntry>& tensors, int64_t data_begin, int64_t file_bytes) {
  int64_t expected = data_begin;
  for (const TensorEntry& tensor : tensors) {
    if (tensor.offset_bytes != expected || tensor.size_bytes > file_bytes - expected) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", Shown(tensor.name), "': its data begins at byte ",
                                                     tensor.offset_bytes, " of ", file_bytes, ", expected ", expected,
                                                     " (a gap, an overlap, or a truncated file)"));
    }
    expected += tensor.size_bytes;
  }
  if (expected == file_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the file is ", file_bytes, " bytes long, its tensors end at byte ", expected));
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json, int64_t data_begin,
                                                         int64_t file_bytes) {
  HeaderReader reader;
  if (json.empty() || json.front() != '{') return absl::InvalidArgumentError("the header does not begin with '{'");
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &reader)) {
    return absl::InvalidArgumentError(reader.error());
  }
  SafetensorsHeader header;
  header.metadata = std::move(reader.metadata());
  for (HeaderReader::RawTensor& raw : reader.tensors()) {
    DITSERVE_ASSIGN_OR_RETURN(TensorEntry tensor, CheckTensor(raw, data_begin));
    header.tensors.push_back(std::move(tensor));
  }
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.offset_bytes, a.size_bytes) < std::pair(b.offset_bytes, b.size_bytes);
  });
  DITSERVE_RETURN_IF_ERROR(CheckCoverage(header.tensors, data_begin, file_bytes));
  return header;
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const File& file) {
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(file.name(), ": ", what));
  };
  std::array<std::byte, 8> prefix;
  if (file.size_bytes() < static_cast<int64_t>(prefix.size())) {
    return wrong("not a safetensors file: shorter than 8 bytes");
  }
  DITSERVE_RETURN_IF_ERROR(file.ReadAt(0, absl::MakeSpan(prefix)));
  uint64_t length = 0;
  for (size_t i = 0; i < prefix.size(); ++i) length |= static_cast<uint64_t>(prefix[i]) << (8 * i);
  const int64_t data = file.size_bytes() - static_cast<int64_t>(prefix.size());
  if (length > static_cast<uint64_t>(kMaxHeaderBytes) || static_cast<int64_t>(length) > data) {
    return wrong(
        absl::StrCat("not a safetensors file: a header of ", length, " bytes in a file of ", file.size_bytes()));
  }
  std::string json(length, '\0');
  DITSERVE_RETURN_IF_ERROR(
      file.ReadAt(prefix.size(), absl::MakeSpan(reinterpret_cast<std::byte*>(json.data()), json.size())));
  absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(json, static_cast<int64_t>(prefix.size() + length), file.size_bytes());
  if (!header.ok()) return wrong(header.status().message());
  return header;
}

}  // namespace ditserve
