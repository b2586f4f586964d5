#include "core/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "nlohmann/json.hpp"

namespace ditserve {
namespace {

absl::Status ErrorOf(int error, const std::string& name) {
  char buffer[128];
  const std::string message = absl::StrCat(name, ": ", strerror_r(error, buffer, sizeof buffer));
  if (error == EEXIST) return absl::AlreadyExistsError(message);
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, const std::vector<Tensor>& tensors, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    int64_t bytes = SizeOf(tensor.dtype);
    for (const int64_t length : tensor.shape) bytes *= length;
    header[tensor.name] = {{"dtype", std::string(SafetensorsName(tensor.dtype))},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string json = header.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');  // So that the data is aligned.
  std::string name = std::filesystem::path(path).filename().string();
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) return ErrorOf(errno, name);
  auto writer = std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter(std::move(name), descriptor));
  writer->missing_bytes_ = offset;
  std::string prefix(8, '\0');
  for (size_t i = 0; i < prefix.size(); ++i) prefix[i] = static_cast<char>(json.size() >> (8 * i) & 0xff);
  json.insert(0, prefix);
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
  const int descriptor = std::exchange(descriptor_, -1);
  return close(descriptor) == 0 ? absl::OkStatus() : ErrorOf(errno, name_);
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
