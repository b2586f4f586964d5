#include "core/storage/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "core/base/status_macros.h"
#include "core/storage/json_reader.h"
#include "core/storage/safetensors.h"

namespace ditserve {
namespace {

absl::Status ErrorOf(int error, const std::string& name) {
  char buffer[128];
  const std::string message = absl::StrCat(name, ": ", strerror_r(error, buffer, sizeof buffer));
  if (error == EEXIST) return absl::AlreadyExistsError(message);
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

std::string Quoted(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&quoted, "\\", absl::string_view(&c, 1));
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppend(&quoted, "\\u", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad4));
    } else {
      quoted.push_back(c);
    }
  }
  return quoted + "\"";
}

// The header's JSON, padded so that the data is aligned, and the bytes of data it announces.
absl::StatusOr<std::pair<std::string, int64_t>> HeaderOf(const std::vector<SafetensorsWriter::Tensor>& tensors,
                                                         const std::map<std::string, std::string>& metadata) {
  std::vector<std::string> entries;
  if (!metadata.empty()) {
    const auto pair = [](std::string* out, const auto& entry) {
      absl::StrAppend(out, Quoted(entry.first), ":", Quoted(entry.second));
    };
    entries.push_back(absl::StrCat("\"__metadata__\":{", absl::StrJoin(metadata, ",", pair), "}"));
  }
  int64_t begin = 0;
  for (const SafetensorsWriter::Tensor& tensor : tensors) {
    const std::optional<int64_t> bytes = TensorBytes(tensor.shape, tensor.dtype);
    int64_t end;
    if (!bytes || __builtin_add_overflow(begin, *bytes, &end)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", Printable(tensor.name), "': its shape is too large"));
    }
    entries.push_back(absl::StrCat(Quoted(tensor.name), ":{\"dtype\":\"", SafetensorsName(tensor.dtype),
                                   "\",\"shape\":[", absl::StrJoin(tensor.shape, ","), "],\"data_offsets\":[", begin,
                                   ",", end, "]}"));
    begin = end;
  }
  std::string json = absl::StrCat("{", absl::StrJoin(entries, ","), "}");
  json.resize((json.size() + 7) / 8 * 8, ' ');
  return std::pair(std::move(json), begin);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, const std::vector<Tensor>& tensors, const std::map<std::string, std::string>& metadata) {
  DITSERVE_ASSIGN_OR_RETURN(const auto header, HeaderOf(tensors, metadata));
  const auto& [json, data_bytes] = header;
  // What it writes, it can read: names and ranks are checked there.
  DITSERVE_RETURN_IF_ERROR(ParseSafetensorsHeader(json, 0, data_bytes).status());
  std::string name = std::filesystem::path(path).filename().string();
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) return ErrorOf(errno, name);
  auto writer = std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter(std::move(name), descriptor, data_bytes));
  std::string prefix(8, '\0');
  for (size_t i = 0; i < prefix.size(); ++i) prefix[i] = static_cast<char>(json.size() >> (8 * i) & 0xff);
  DITSERVE_RETURN_IF_ERROR(writer->Write(prefix.data(), prefix.size()));
  DITSERVE_RETURN_IF_ERROR(writer->Write(json.data(), json.size()));
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::Status SafetensorsWriter::Append(absl::Span<const std::byte> data) {
  if (static_cast<int64_t>(data.size()) > missing_bytes_) {
    return absl::FailedPreconditionError(absl::StrCat(name_, ": more data than the header announces"));
  }
  missing_bytes_ -= static_cast<int64_t>(data.size());
  return Write(data.data(), data.size());
}

absl::Status SafetensorsWriter::Finish() {
  if (missing_bytes_ != 0) {
    return absl::FailedPreconditionError(absl::StrCat(name_, ": ", missing_bytes_, " bytes of data are missing"));
  }
  if (fsync(descriptor_) != 0) return ErrorOf(errno, name_);
  return close(std::exchange(descriptor_, -1)) == 0 ? absl::OkStatus() : ErrorOf(errno, name_);
}

absl::Status SafetensorsWriter::Write(const void* data, size_t size) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = write(descriptor_, next, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrorOf(errno, name_);
    next += written;
    size -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

}  // namespace ditserve
