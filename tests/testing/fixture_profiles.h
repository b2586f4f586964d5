#ifndef DITSERVE_TESTS_TESTING_FIXTURE_PROFILES_H_
#define DITSERVE_TESTS_TESTING_FIXTURE_PROFILES_H_

#include <cstdint>
#include <optional>

#include "core/placement/profile.h"

namespace ditserve {

// One profile of each kind, for a model that is stored in bfloat16.
struct FixtureProfiles {
  static Profile MakeProfile(Station offload, Station onload, Station preparing,
                             std::optional<int64_t> limit = std::nullopt) {
    Profile profile;
    profile.name = "test";
    profile.offload = offload;
    profile.onload = onload;
    profile.preparing = preparing;
    profile.computation = {Tier::kDevice, DType::kBFloat16};
    profile.vram_limit_bytes = limit;
    profile.managed_types = {"Linear", "RMSNorm"};
    return profile;
  }
  // Computes in another dtype than the stations' copies are in.
  static Profile HostOffloadInFloat16() {
    Profile profile = MakeProfile(kOnHost, kOnHost, {Tier::kDevice, DType::kFloat16}, 0);
    profile.computation.dtype = DType::kFloat16;
    return profile;
  }
  static constexpr Station kOnDisk = {Tier::kDisk, DType::kBFloat16};
  static constexpr Station kOnHost = {Tier::kHost, DType::kBFloat16};
  static constexpr Station kOnDevice = {Tier::kDevice, DType::kBFloat16};
  // Whose computation's copies are twice as large as the others, and by way of another form.
  static Profile HostOffloadInFloat32() {
    Profile profile = HostOffloadInFloat16();
    profile.preparing.dtype = profile.computation.dtype = DType::kFloat32;
    return profile;
  }
  static Profile Fp8() {
    constexpr Station kInFp8 = {Tier::kHost, DType::kFloat8E4M3};
    return MakeProfile(kInFp8, kInFp8, kOnDevice, 0);
  }
  static Profile Resident() { return MakeProfile(kOnDevice, kOnDevice, kOnDevice); }
  static Profile HostOffload() { return MakeProfile(kOnHost, kOnHost, kOnDevice, 0); }
  static Profile Disk() { return MakeProfile(kOnDisk, kOnDisk, kOnDevice, 0); }
  static Profile DiskDynamic(std::optional<int64_t> limit) { return MakeProfile(kOnDisk, kOnDisk, kOnDevice, limit); }
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_FIXTURE_PROFILES_H_
