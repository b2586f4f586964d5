#include "core/storage/safetensors.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/storage/json_reader.h"

namespace ditserve {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxRank = 8;
constexpr absl::string_view kMetadata = "__metadata__";

bool IsSafeName(absl::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('\0') == absl::string_view::npos &&
         name.find_first_of("/\\") == absl::string_view::npos;
}

// {"__metadata__": {key: text}, tensor: {"dtype": text, "shape": [...], "data_offsets": [begin, end]}}
class HeaderReader final : public JsonReader {
 public:
  explicit HeaderReader(int64_t data_begin) : data_begin_(data_begin) {}

  SafetensorsHeader Take() && { return std::move(header_); }

 private:
  absl::Status OnValue(JsonValue value) override {
    switch (path().size()) {
      case 0:
        return absl::OkStatus();  // An object: the text begins with '{'.
      case 1:
        return OnEntry(value);
      case 2:
        return path()[0] == kMetadata ? OnMetadata(value) : OnField(value);
      case 3:
        return OnElement(value);
      default:
        return absl::OkStatus();  // Inside an unknown field: known ones end above.
    }
  }

  absl::Status OnEntry(const JsonValue& value) {
    const bool metadata = path()[0] == kMetadata;
    if (metadata && value.kind == JsonValue::Kind::kNull) return absl::OkStatus();
    if (value.kind != JsonValue::Kind::kObject) return Wrong("its entry must be an object");
    if (!metadata && !IsSafeName(path()[0])) return Wrong("its name is empty or has a NUL or a path part");
    dtype_.reset();
    shape_.reset();
    offsets_.reset();
    return absl::OkStatus();
  }

  absl::Status OnMetadata(JsonValue& value) {
    if (value.kind != JsonValue::Kind::kString) {
      return absl::InvalidArgumentError(
          absl::StrCat(kMetadata, ": the value of '", Printable(path()[1]), "' must be a string"));
    }
    header_.metadata.emplace(path()[1], std::move(value.text));
    return absl::OkStatus();
  }

  absl::Status OnField(const JsonValue& value) {
    if (path()[1] == "dtype") {
      if (value.kind != JsonValue::Kind::kString) return Wrong("dtype must be a string");
      dtype_ = DTypeFromSafetensors(value.text);
      if (!dtype_) return Wrong(absl::StrCat("unknown dtype '", Printable(value.text), "'"));
    } else if (std::optional<std::vector<int64_t>>* const integers = IntegersAtHand()) {
      if (value.kind != JsonValue::Kind::kArray) return Wrong(absl::StrCat(path()[1], " must be an array"));
      integers->emplace();
    }
    return absl::OkStatus();
  }

  absl::Status OnElement(const JsonValue& value) {
    std::optional<std::vector<int64_t>>* const integers = IntegersAtHand();
    if (integers == nullptr) return absl::OkStatus();
    if (value.kind != JsonValue::Kind::kInteger) {
      return Wrong(absl::StrCat(path()[1], " must hold integers from 0 to 2^63 - 1"));
    }
    if ((*integers)->size() == kMaxRank) return Wrong(absl::StrCat(path()[1], " has more than ", kMaxRank, " entries"));
    (*integers)->push_back(value.integer);
    return absl::OkStatus();
  }

  absl::Status OnEnd() override {
    if (path().size() != 1 || path()[0] == kMetadata) return absl::OkStatus();
    if (!dtype_ || !shape_ || !offsets_) return Wrong("dtype, shape and data_offsets are needed");
    if (offsets_->size() != 2 || (*offsets_)[0] > (*offsets_)[1]) {
      return Wrong("data_offsets must be [begin, end] with begin <= end");
    }
    const auto [begin, end] = std::pair((*offsets_)[0], (*offsets_)[1]);
    const std::optional<int64_t> bytes = TensorBytes(*shape_, *dtype_);
    if (!bytes) return Wrong("its shape takes more than 2^63 - 1 bytes");
    if (*bytes != end - begin) {
      return Wrong(absl::StrCat("data_offsets span ", end - begin, " bytes, dtype and shape take ", *bytes));
    }
    int64_t offset;
    if (__builtin_add_overflow(begin, data_begin_, &offset)) return Wrong("data_offsets lie outside of the file");
    header_.tensors.push_back({path()[0], *dtype_, *std::move(shape_), offset, *bytes});
    return absl::OkStatus();
  }

  // What takes the integers of the field at hand; null if they are not wanted.
  std::optional<std::vector<int64_t>>* IntegersAtHand() {
    if (path()[1] == "shape") return &shape_;
    return path()[1] == "data_offsets" ? &offsets_ : nullptr;
  }

  absl::Status Wrong(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", Printable(path()[0]), "': ", what));
  }

  const int64_t data_begin_;
  SafetensorsHeader header_;
  // Fields of the tensor at hand.
  std::optional<DType> dtype_;
  std::optional<std::vector<int64_t>> shape_, offsets_;
};

// `tensors` are sorted by offset.
absl::Status CheckCoverage(absl::Span<const TensorEntry> tensors, int64_t data_begin, int64_t file_bytes) {
  int64_t end = data_begin;
  for (const TensorEntry& tensor : tensors) {
    if (tensor.offset_bytes != end) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor '", Printable(tensor.name), "': ", tensor.offset_bytes > end ? "a gap" : "an overlap",
          " before its data: it begins at byte ", tensor.offset_bytes, ", what precedes it ends at ", end));
    }
    if (tensor.size_bytes > file_bytes - end) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", Printable(tensor.name), "': its ", tensor.size_bytes,
                                                     " bytes from byte ", end, " on exceed the file's ", file_bytes));
    }
    end += tensor.size_bytes;
  }
  if (end == file_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the tensors end at byte ", end, ", the file has ", file_bytes));
}

}  // namespace

std::optional<int64_t> TensorBytes(absl::Span<const int64_t> shape, DType dtype) {
  int64_t bytes = SizeOf(dtype);
  for (const int64_t length : shape) {
    if (length < 0 || __builtin_mul_overflow(bytes, length, &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json, int64_t data_begin,
                                                         int64_t file_bytes) {
  if (json.empty() || json.front() != '{') return absl::InvalidArgumentError("the header does not begin with '{'");
  HeaderReader reader(data_begin);
  if (const absl::Status status = reader.Read(json); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("header: ", status.message()));
  }
  SafetensorsHeader header = std::move(reader).Take();
  // An empty tensor stands before the one that begins at the same byte.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.offset_bytes, a.size_bytes) < std::tie(b.offset_bytes, b.size_bytes);
  });
  DITSERVE_RETURN_IF_ERROR(CheckCoverage(header.tensors, data_begin, file_bytes));
  return header;
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const File& file) {
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(file.name(), ": not a valid safetensors file: ", what));
  };
  std::array<std::byte, 8> prefix;
  const int64_t prefix_bytes = static_cast<int64_t>(prefix.size());
  if (file.size_bytes() < prefix_bytes) return wrong("shorter than 8 bytes");
  DITSERVE_RETURN_IF_ERROR(file.ReadAt(0, absl::MakeSpan(prefix)));
  uint64_t length = 0;
  for (size_t i = 0; i < prefix.size(); ++i) length |= static_cast<uint64_t>(prefix[i]) << (8 * i);
  if (length > static_cast<uint64_t>(std::min(kMaxHeaderBytes, file.size_bytes() - prefix_bytes))) {
    return wrong(absl::StrCat("it announces a header of ", length, " bytes; the file has ", file.size_bytes(),
                              " and at most ", kMaxHeaderBytes, " are read"));
  }
  std::string json(length, '\0');
  DITSERVE_RETURN_IF_ERROR(
      file.ReadAt(prefix_bytes, absl::MakeSpan(reinterpret_cast<std::byte*>(json.data()), json.size())));
  absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(json, prefix_bytes + static_cast<int64_t>(length), file.size_bytes());
  if (!header.ok()) return wrong(header.status().message());
  return header;
}

}  // namespace ditserve
