#ifndef DITSERVE_TESTS_TESTING_SAFETENSORS_FIXTURE_H_
#define DITSERVE_TESTS_TESTING_SAFETENSORS_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/base/dtype.h"
#include "core/storage/safetensors.h"
#include "core/storage/safetensors_writer.h"

namespace ditserve {

// A tensor of a made-up file. With empty `data` its bytes are FixtureBytes of its name.
struct FixtureTensor {
  std::string name;
  DType dtype = DType::kBFloat16;
  std::vector<int64_t> shape;
  std::string data = {};
};

// Bytes that differ from name to name and from place to place.
inline std::string FixtureBytes(const std::string& name, int64_t size) {
  uint32_t state = 2166136261u;
  for (const char c : name) state = (state ^ static_cast<unsigned char>(c)) * 16777619u;
  std::string bytes(static_cast<size_t>(size), '\0');
  for (char& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<char>(state >> 24);
  }
  return bytes;
}

inline std::string DataOf(const FixtureTensor& tensor) {
  return tensor.data.empty() ? FixtureBytes(tensor.name, TensorBytes(tensor.shape, tensor.dtype).value()) : tensor.data;
}

// Writes a safetensors file that must not exist yet.
inline void WriteSafetensors(const std::string& path, const std::vector<FixtureTensor>& tensors,
                             const std::map<std::string, std::string>& metadata = {}) {
  std::vector<SafetensorsWriter::Tensor> header;
  for (const FixtureTensor& tensor : tensors) header.push_back({tensor.name, tensor.dtype, tensor.shape});
  absl::StatusOr<std::unique_ptr<SafetensorsWriter>> writer = SafetensorsWriter::Create(path, header, metadata);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const FixtureTensor& tensor : tensors) {
    const std::string data = DataOf(tensor);
    const absl::Status status =
        (*writer)->Append(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(data.data()), data.size()));
    ASSERT_TRUE(status.ok()) << status;
  }
  const absl::Status status = (*writer)->Finish();
  ASSERT_TRUE(status.ok()) << status;
}

// The same, with the tensors' data from the beginning of a page on.
inline void WritePagedSafetensors(const std::string& path, const std::vector<FixtureTensor>& tensors) {
  constexpr uint64_t kPage = 4096;
  WriteSafetensors(path, tensors, {{"padding", ""}});
  uint64_t header = 0;
  std::ifstream(path).read(reinterpret_cast<char*>(&header), sizeof header);
  std::filesystem::remove(path);
  const uint64_t padding = (kPage - (sizeof header + header) % kPage) % kPage;
  WriteSafetensors(path, tensors, {{"padding", std::string(padding, ' ')}});
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_SAFETENSORS_FIXTURE_H_
