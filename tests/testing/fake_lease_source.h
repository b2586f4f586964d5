#ifndef DITSERVE_TESTS_TESTING_FAKE_LEASE_SOURCE_H_
#define DITSERVE_TESTS_TESTING_FAKE_LEASE_SOURCE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "core/devices/cast.h"
#include "core/residency/lease.h"
#include "core/storage/module.h"
#include "models/seeded_values.h"

namespace ditserve {

// Made-up weights of a model, given out at once or when told, and checks that they are asked for as agreed: each module
// once, in order, one at a time.
class FakeLeaseSource final : public LeaseSource {
 public:
  FakeLeaseSource(const std::vector<ModuleSpec>& modules, DType dtype)
      : FakeLeaseSource(modules, [dtype](const ModuleSpec&) { return dtype; }) {}
  // In a dtype for each module.
  FakeLeaseSource(const std::vector<ModuleSpec>& modules, const std::function<DType(const ModuleSpec&)>& dtype_of) {
    for (const ModuleSpec& module : modules) {
      dtypes_.push_back(dtype_of(module));
      std::vector<std::vector<std::byte>>& copies = weights_.emplace_back();
      for (const ParameterSpec& parameter : module.parameters) copies.push_back(Make(module, parameter));
    }
  }

  // Leases are given by Give alone.
  void WaitForGive() { waits_ = true; }
  bool waiting() const { return pending_ != nullptr; }
  void Give() { std::exchange(pending_, nullptr)(MakeLease()); }

  // These are not asked for. In order.
  void Skip(const std::vector<ModuleIndex>& modules) { skips_ = modules; }

  // Acquiring this module fails.
  void FailAt(ModuleIndex module, absl::Status status) { failure_.emplace(module, std::move(status)); }

  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override {
    while (std::binary_search(skips_.begin(), skips_.end(), next_)) ++next_;
    EXPECT_EQ(module, next_) << "modules are acquired in order, each once";
    EXPECT_EQ(held_, 0) << "a lease lives no longer than its operation";
    if (failure_ && failure_->first == module) return std::move(done)(failure_->second);
    if (!waits_) return std::move(done)(MakeLease());
    pending_ = [done = std::move(done)](Lease lease) mutable { std::move(done)(std::move(lease)); };
  }

  int held() const { return held_; }
  int given() const { return given_; }

 private:
  // Like a seeded checkpoint's: deviation 1 / sqrt(fan-in), norms near 1.
  std::vector<std::byte> Make(const ModuleSpec& module, const ParameterSpec& parameter) const {
    int64_t count = 1;
    for (const int64_t length : parameter.shape) count *= length;
    const bool norm = module.type == "RMSNorm";
    const float deviation =
        parameter.shape.size() == 2 ? 1.0f / std::sqrt(static_cast<float>(parameter.shape[1])) : 0.1f;
    std::vector<float> values(static_cast<size_t>(count));
    FillSeeded(7, module.path + "." + parameter.name, 0, count, norm ? 1.0f : 0.0f, deviation, values.data());
    const DType dtype = dtypes_.back();
    std::vector<std::byte> bytes(static_cast<size_t>(count * SizeOf(dtype)));
    Cast(values.data(), DType::kFloat32, {}, bytes.data(), dtype, count);
    return bytes;
  }

  Lease MakeLease() {
    LeasedTensors tensors;
    const auto next = static_cast<size_t>(next_);
    for (const auto& bytes : weights_[next]) tensors.push_back({bytes.data(), dtypes_[next]});
    ++next_;
    ++given_;
    ++held_;
    return Lease(std::move(tensors), [this] { --held_; });
  }

  std::vector<DType> dtypes_;  // Of each module.
  std::vector<std::vector<std::vector<std::byte>>> weights_;
  std::optional<std::pair<ModuleIndex, absl::Status>> failure_;
  absl::AnyInvocable<void(Lease)> pending_;
  bool waits_ = false;
  ModuleIndex next_ = 0;
  int given_ = 0;
  std::vector<ModuleIndex> skips_;
  int held_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_FAKE_LEASE_SOURCE_H_
