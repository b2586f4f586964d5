#ifndef DITSERVE_TESTS_TESTING_FIXTURE_MODEL_H_
#define DITSERVE_TESTS_TESTING_FIXTURE_MODEL_H_

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/devices/cast.h"
#include "core/storage/model_weights.h"
#include "tests/testing/safetensors_fixture.h"

namespace ditserve {

// A model of a few modules, whose numbers every dtype has.
class FixtureModel {
 public:
  static constexpr int kModules = 12;
  static constexpr int64_t kElements = 2048;
  static constexpr int64_t kEvenBytes = kElements * 2;  // In bfloat16: one page.

  // Elements of a module's weight and of its bias (0: it has none), and how many of the file's follow those of each
  // that nothing reads.
  struct Module {
    int64_t weight;
    int64_t bias;
    int64_t unread = 0;
  };
  using Modules = std::array<Module, kModules>;

  // Of a page each: for tests that count copies.
  static Modules Even() {
    Modules modules;
    modules.fill({kElements, 0, 0});
    return modules;
  }
  // Of 1 to 40 pages, hardly anything of which begins at a page.
  static Modules Uneven() {
    return {{{100, 0},
             {40'000, 700},
             {3000, 3000, 1500},
             {501, 0},
             {2048, 2},
             {80'001, 0},
             {9, 1},
             {12'000, 0, 5},
             {5000, 3},
             {30'030, 1234},
             {2047, 0},
             {7000, 50}}};
  }

  explicit FixtureModel(const Modules& modules) {
    for (int i = 0; i < kModules; ++i) {
      const Module& module = modules[static_cast<size_t>(i)];
      specs_.push_back({"module" + std::string(1, static_cast<char>('a' + i)), i % 4 == 3 ? "RMSNorm" : "Linear", {}});
      AddParameter(i, "weight", module.weight, module.unread);
      if (module.bias > 0) AddParameter(i, "bias", module.bias, module.unread);
    }
  }

  // Writes the checkpoint.
  std::unique_ptr<ModelWeights> Write(const std::string& path, const FileCalls& files) const {
    WritePagedSafetensors(path, tensors_);
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path, files);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    absl::StatusOr<std::unique_ptr<ModelWeights>> weights = ModelWeights::Bind("m", specs_, *std::move(checkpoint));
    EXPECT_TRUE(weights.ok()) << weights.status();
    return *std::move(weights);
  }

  // The bytes of each parameter of a module, in a dtype that operations compute in.
  const std::vector<std::string>& Expected(ModuleIndex module, DType dtype) const {
    return expected_.at(dtype)[static_cast<size_t>(module)];
  }
  int64_t stored_bytes() const { return stored_bytes_; }
  int64_t unread_bytes() const { return unread_bytes_; }

 private:
  // Of three bits after the point and few exponents; they differ from one place to the next.
  static std::string Numbers(int module, int64_t elements) {
    std::vector<uint16_t> values;
    for (int64_t i = 0; i < elements; ++i) {
      values.push_back(static_cast<uint16_t>(0x3f80 + 0x10 * ((module + 5 * i) % 23)));
    }
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(uint16_t)};
  }

  void AddParameter(int module, const std::string& name, int64_t elements, int64_t unread) {
    const std::string numbers = Numbers(module, elements + unread);
    ModuleSpec& spec = specs_.back();
    tensors_.push_back({absl::StrCat(spec.path, ".", name), DType::kBFloat16, {elements + unread}, numbers});
    spec.parameters.push_back({name, {elements + unread}});
    if (unread > 0) spec.parameters.back().rows_read = elements;
    stored_bytes_ += static_cast<int64_t>(numbers.size());
    unread_bytes_ += unread * SizeOf(DType::kBFloat16);
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
      std::string expected(static_cast<size_t>(elements * SizeOf(dtype)), '\0');
      Cast(numbers.data(), DType::kBFloat16, {}, expected.data(), dtype, elements);
      expected_[dtype][static_cast<size_t>(module)].push_back(std::move(expected));
    }
  }

  std::vector<ModuleSpec> specs_;
  std::vector<FixtureTensor> tensors_;
  std::map<DType, std::array<std::vector<std::string>, kModules>> expected_;  // By dtype, module and parameter.
  int64_t stored_bytes_ = 0;
  int64_t unread_bytes_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_FIXTURE_MODEL_H_
