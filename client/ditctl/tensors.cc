#include "client/ditctl/tensors.h"

#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/ditctl/npy.h"
#include "core/cast.h"
#include "core/file.h"
#include "core/safetensors.h"
#include "core/safetensors_writer.h"
#include "core/seeded_values.h"
#include "core/status_macros.h"

namespace ditserve::ditctl {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{2} << 30;  // No message can be larger.

constexpr std::array<std::pair<v1::DType, DType>, 8> kDTypes = {{{v1::DTYPE_FLOAT32, DType::kFloat32},
                                                                 {v1::DTYPE_BFLOAT16, DType::kBFloat16},
                                                                 {v1::DTYPE_FLOAT16, DType::kFloat16},
                                                                 {v1::DTYPE_FLOAT8_E4M3FN, DType::kFloat8E4M3},
                                                                 {v1::DTYPE_INT64, DType::kInt64},
                                                                 {v1::DTYPE_INT32, DType::kInt32},
                                                                 {v1::DTYPE_UINT8, DType::kUint8},
                                                                 {v1::DTYPE_BOOL, DType::kBool}}};

v1::Tensor MakeTensor(const std::vector<int64_t>& shape, DType dtype, const std::vector<float>& values) {
  v1::Tensor tensor;
  tensor.set_dtype(ToProto(dtype));
  for (const int64_t length : shape) tensor.add_shape(length);
  tensor.mutable_data()->resize(values.size() * SizeOf(dtype));
  Cast(values.data(), DType::kFloat32, {}, tensor.mutable_data()->data(), dtype, static_cast<int64_t>(values.size()));
  return tensor;
}

int64_t Count(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t length : shape) count *= length;
  return count;
}

absl::StatusOr<std::string> ReadBytes(const File& file, int64_t offset, int64_t size) {
  if (size > kMaxFileBytes) return absl::InvalidArgumentError(absl::StrCat(file.name(), ": larger than 2 GiB"));
  std::string bytes(static_cast<size_t>(size), '\0');
  DITSERVE_RETURN_IF_ERROR(
      file.ReadAt(offset, absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size())));
  return bytes;
}

absl::StatusOr<v1::Tensor> ReadFromSafetensors(const File& file, const std::string& name) {
  DITSERVE_ASSIGN_OR_RETURN(const SafetensorsHeader header, ReadSafetensorsHeader(file));
  for (const TensorEntry& entry : header.tensors) {
    if (entry.name != name) continue;
    v1::Tensor tensor;
    tensor.set_dtype(ToProto(entry.dtype));
    if (tensor.dtype() == v1::DTYPE_UNSPECIFIED) {
      return absl::InvalidArgumentError(absl::StrCat(file.name(), ": tensor '", name, "' is ",
                                                     SafetensorsName(entry.dtype), ", which can't be sent"));
    }
    for (const int64_t length : entry.shape) tensor.add_shape(length);
    DITSERVE_ASSIGN_OR_RETURN(*tensor.mutable_data(), ReadBytes(file, entry.offset_bytes, entry.size_bytes));
    return tensor;
  }
  return absl::NotFoundError(absl::StrCat(file.name(), " has no tensor '", name, "'"));
}

absl::Status WriteSafetensors(const std::string& path, const std::string& name, const v1::Tensor& tensor) {
  const std::vector<int64_t> shape(tensor.shape().begin(), tensor.shape().end());
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                            SafetensorsWriter::Create(path, {{name, *FromProto(tensor.dtype()), shape}}, {}));
  DITSERVE_RETURN_IF_ERROR(writer->Append(
      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(tensor.data().data()), tensor.data().size())));
  return writer->Finish();
}

absl::Status WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  file.close();
  if (file.good()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("can't write ", std::filesystem::path(path).filename().string(), ": ", std::strerror(errno)));
}

}  // namespace

std::optional<DType> FromProto(v1::DType dtype) {
  for (const auto& [proto, ours] : kDTypes) {
    if (proto == dtype) return ours;
  }
  return std::nullopt;
}

v1::DType ToProto(DType dtype) {
  for (const auto& [proto, ours] : kDTypes) {
    if (ours == dtype) return proto;
  }
  return v1::DTYPE_UNSPECIFIED;
}

std::optional<int64_t> BytesOf(const v1::Tensor& tensor) {
  const std::optional<DType> dtype = FromProto(tensor.dtype());
  if (!dtype) return std::nullopt;
  int64_t bytes = SizeOf(*dtype);
  for (const int64_t length : tensor.shape()) {
    if (length < 0 || __builtin_mul_overflow(bytes, length, &bytes)) return std::nullopt;
  }
  return bytes;
}

v1::Tensor ConvertTo(const v1::Tensor& tensor, DType dtype) {
  return MakeTensor({tensor.shape().begin(), tensor.shape().end()}, dtype, Floats(tensor));
}

std::vector<float> Floats(const v1::Tensor& tensor) {
  const DType dtype = *FromProto(tensor.dtype());
  std::vector<float> values(tensor.data().size() / SizeOf(dtype));
  Cast(tensor.data().data(), dtype, {}, values.data(), DType::kFloat32, static_cast<int64_t>(values.size()));
  return values;
}

v1::Tensor SeededTensor(uint64_t seed, const std::string& name, const std::vector<int64_t>& shape, DType dtype) {
  std::vector<float> values(static_cast<size_t>(Count(shape)));
  FillSeeded(seed, name, 0, static_cast<int64_t>(values.size()), 0.0f, 1.0f, values.data());
  return MakeTensor(shape, dtype, values);
}

v1::Tensor ConstantTensor(float value, const std::vector<int64_t>& shape, DType dtype) {
  return MakeTensor(shape, dtype, std::vector<float>(static_cast<size_t>(Count(shape)), value));
}

absl::StatusOr<v1::Tensor> ReadTensor(const std::string& path, const std::string& name) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, File::Open(path));
  if (absl::EndsWith(path, ".safetensors")) return ReadFromSafetensors(*file, name);
  if (!absl::EndsWith(path, ".npy")) {
    return absl::InvalidArgumentError(absl::StrCat(file->name(), ": expected a .npy or .safetensors file"));
  }
  DITSERVE_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(*file, 0, file->size_bytes()));
  absl::StatusOr<v1::Tensor> tensor = ParseNpy(bytes);
  if (tensor.ok()) return tensor;
  return absl::Status(tensor.status().code(), absl::StrCat(file->name(), ": ", tensor.status().message()));
}

absl::Status WriteTensor(const std::string& path, const std::string& name, const v1::Tensor& tensor) {
  const std::string partial = absl::StrCat(path, ".partial-", getpid());
  absl::Status status = absl::EndsWith(path, ".safetensors") ? WriteSafetensors(partial, name, tensor)
                                                             : WriteBytes(partial, ToNpy(tensor));
  std::error_code error;
  if (status.ok()) {
    std::filesystem::rename(partial, path, error);
    if (error) status = absl::UnavailableError(absl::StrCat("can't write the output: ", error.message()));
  }
  if (!status.ok()) std::filesystem::remove(partial, error);
  return status;
}

}  // namespace ditserve::ditctl
