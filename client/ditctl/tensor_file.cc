#include "client/ditctl/tensor_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/ditctl/npy.h"
#include "client/ditctl/tensors.h"
#include "core/base/status_macros.h"
#include "core/storage/file.h"
#include "core/storage/json_reader.h"
#include "core/storage/safetensors.h"
#include "core/storage/safetensors_writer.h"

namespace ditserve::ditctl {
namespace {

absl::Status Prefixed(absl::string_view name, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(name, ": ", status.message()));
}

absl::StatusOr<std::string> ReadBytes(const File& file, int64_t offset, int64_t size) {
  if (size > kMaxMessageBytes) {
    return absl::InvalidArgumentError(absl::StrCat(file.name(), ": larger than the 2 GiB that a message can hold"));
  }
  std::string bytes(static_cast<size_t>(size), '\0');
  DITSERVE_RETURN_IF_ERROR(
      file.ReadAt(offset, absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size())));
  return bytes;
}

absl::StatusOr<v1::Tensor> ReadEntry(const File& file, const TensorEntry& entry) {
  v1::Tensor tensor;
  tensor.set_dtype(ToProto(entry.dtype));
  if (tensor.dtype() == v1::DTYPE_UNSPECIFIED) {
    return absl::InvalidArgumentError(absl::StrCat(file.name(), ": tensor '", Printable(entry.name), "' is ",
                                                   SafetensorsName(entry.dtype), ", which can't be sent"));
  }
  if (entry.size_bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat(file.name(), ": tensor '", Printable(entry.name), "' is empty"));
  }
  tensor.mutable_shape()->Add(entry.shape.begin(), entry.shape.end());
  DITSERVE_ASSIGN_OR_RETURN(*tensor.mutable_data(), ReadBytes(file, entry.offset_bytes, entry.size_bytes));
  return tensor;
}

absl::StatusOr<v1::Tensor> ReadFromSafetensors(const File& file, const std::string& name, Metadata* metadata) {
  DITSERVE_ASSIGN_OR_RETURN(const SafetensorsHeader header, ReadSafetensorsHeader(file));
  if (metadata != nullptr) *metadata = header.metadata;
  for (const TensorEntry& entry : header.tensors) {
    if (entry.name == name) return ReadEntry(file, entry);
  }
  return absl::NotFoundError(absl::StrCat(file.name(), " has no tensor '", name, "'"));
}

absl::Status WriteSafetensors(const std::string& path, const std::string& name, const v1::Tensor& tensor,
                              const Metadata& metadata) {
  const std::vector<int64_t> shape(tensor.shape().begin(), tensor.shape().end());
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                            SafetensorsWriter::Create(path, {{name, *FromProto(tensor.dtype()), shape}}, metadata));
  DITSERVE_RETURN_IF_ERROR(writer->Append(
      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(tensor.data().data()), tensor.data().size())));
  return writer->Finish();
}

// Writes all of `bytes` and sees them to the disk; 0 or an errno.
int WriteAll(int descriptor, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return fsync(descriptor) == 0 ? 0 : errno;
}

absl::Status WriteBytes(const std::string& path, absl::string_view bytes) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  int error = descriptor < 0 ? errno : WriteAll(descriptor, bytes);
  if (descriptor >= 0 && close(descriptor) != 0 && error == 0) error = errno;
  return error == 0 ? absl::OkStatus() : absl::UnavailableError(std::strerror(error));
}

// Has `write` write a file beside `path`, which takes its place once it is whole.
absl::Status WriteThrough(const std::string& path, const std::function<absl::Status(const std::string&)>& write) {
  const std::string partial = absl::StrCat(path, ".partial-", getpid());
  std::error_code error;
  std::filesystem::remove(partial, error);  // Of who was killed and had this number, as a container's only process has.
  absl::Status status = write(partial);
  if (status.ok()) {
    std::filesystem::rename(partial, path, error);
    if (error) status = absl::UnavailableError(error.message());
  }
  if (status.ok()) return status;
  std::filesystem::remove(partial, error);
  return Prefixed(absl::StrCat("can't write '", path, "'"), status);
}

}  // namespace

absl::StatusOr<v1::Tensor> ReadTensor(const std::string& path, const std::string& name, Metadata* metadata) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, File::Open(path));
  if (absl::EndsWith(path, ".safetensors")) return ReadFromSafetensors(*file, name, metadata);
  if (!absl::EndsWith(path, ".npy")) {
    return absl::InvalidArgumentError(absl::StrCat(file->name(), ": expected a .npy or .safetensors file"));
  }
  DITSERVE_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(*file, 0, file->size_bytes()));
  absl::StatusOr<v1::Tensor> tensor = ParseNpy(bytes);
  return tensor.ok() ? std::move(tensor) : Prefixed(file->name(), tensor.status());
}

absl::StatusOr<std::map<std::string, v1::Tensor>> ReadTensors(const std::string& path,
                                                              const std::set<std::string>& names) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, File::Open(path));
  DITSERVE_ASSIGN_OR_RETURN(const SafetensorsHeader header, ReadSafetensorsHeader(*file));
  std::map<std::string, v1::Tensor> tensors;
  for (const TensorEntry& entry : header.tensors) {
    if (!names.contains(entry.name)) {
      return absl::InvalidArgumentError(absl::StrCat(file->name(), ": has a tensor '", Printable(entry.name),
                                                     "', expected only ", absl::StrJoin(names, ", ")));
    }
    DITSERVE_ASSIGN_OR_RETURN(tensors[entry.name], ReadEntry(*file, entry));
  }
  return tensors;
}

absl::Status CheckWritable(const std::string& path, const std::vector<std::string>& extensions) {
  const std::filesystem::path file(path);
  if (std::find(extensions.begin(), extensions.end(), file.extension()) == extensions.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a name that ends in ", absl::StrJoin(extensions, " or "), ", found '", path, "'"));
  }
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  if (access(folder.c_str(), W_OK | X_OK) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("can't write to folder '", folder.string(), "': ", strerror(errno)));
}

absl::Status WriteTensor(const std::string& path, const std::string& name, const v1::Tensor& tensor,
                         const Metadata& metadata) {
  return WriteThrough(path, [&](const std::string& partial) {
    return absl::EndsWith(path, ".safetensors") ? WriteSafetensors(partial, name, tensor, metadata)
                                                : WriteBytes(partial, ToNpy(tensor));
  });
}

absl::Status WriteWhole(const std::string& path, const std::string& bytes) {
  return WriteThrough(path, [&](const std::string& partial) { return WriteBytes(partial, bytes); });
}

}  // namespace ditserve::ditctl
