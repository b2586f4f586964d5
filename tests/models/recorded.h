#ifndef DITSERVE_TESTS_MODELS_RECORDED_H_
#define DITSERVE_TESTS_MODELS_RECORDED_H_

#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "core/storage/safetensors.h"
#include "models/seeded_values.h"
#include "models/weights.h"
#include "nlohmann/json.hpp"
#include "tests/testing/status_matchers.h"

namespace ditserve {

// A file of recorded tensors.
class Recorded {
 public:
  explicit Recorded(const char* path) : file_(*File::Open(path)), header_(*ReadSafetensorsHeader(*file_)) {}

  const std::vector<TensorEntry>& entries() const { return header_.tensors; }
  const TensorEntry& Find(const std::string& name) const {
    return *std::find_if(entries().begin(), entries().end(), [&](const auto& entry) { return entry.name == name; });
  }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  // Of the case that the tensor belongs to: its name is that of the case and one more part.
  nlohmann::json CaseOf(const TensorEntry& entry) const {
    return nlohmann::json::parse(header_.metadata.at(entry.name.substr(0, entry.name.rfind('.'))));
  }
  // The descriptions of all cases whose names begin so, by name.
  std::map<std::string, nlohmann::json> Cases(const std::string& prefix) const {
    std::map<std::string, nlohmann::json> cases;
    for (const auto& [name, description] : metadata()) {
      if (name.rfind(prefix, 0) == 0) cases[name] = nlohmann::json::parse(description);
    }
    return cases;
  }
  at::Tensor Read(const std::string& name) const { return Read(Find(name)); }
  at::Tensor Read(const TensorEntry& entry) const {
    const at::Tensor tensor = at::empty(entry.shape, ScalarTypeOf(entry.dtype));
    EXPECT_THAT(file_->ReadAt(entry.offset_bytes, absl::MakeSpan(static_cast<std::byte*>(tensor.data_ptr()),
                                                                 static_cast<size_t>(entry.size_bytes))),
                IsOk());
    return tensor;
  }

 private:
  const std::unique_ptr<File> file_;
  const SafetensorsHeader header_;
};

// Whether LibTorch draws the noise that it drew where files were recorded: without AVX2 last bits differ.
inline bool DrawsRecordedNoise() { return at::get_cpu_capability() != "DEFAULT"; }

// As a case's description names it.
inline at::ScalarType DTypeOf(const nlohmann::json& description) {
  const auto& name = description["dtype"];
  return name == "float32" ? at::kFloat : name == "bfloat16" ? at::kBFloat16 : at::kHalf;
}

// How far values of a few units may be off that were rounded once more.
inline double ToleranceOf(at::ScalarType dtype) {
  return dtype == at::kFloat ? 1e-5 : dtype == at::kHalf ? 4e-3 : 4e-2;
}

// Made-up float32 values, as scripts/parity/cases.py makes them.
inline at::Tensor Seeded(uint64_t seed, const std::string& name, at::IntArrayRef shape) {
  const at::Tensor tensor = at::empty(shape, at::kFloat);
  FillSeeded(seed, name, 0, tensor.numel(), 0.0f, 1.0f, tensor.data_ptr<float>());
  return tensor;
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_MODELS_RECORDED_H_
