#ifndef DITSERVE_CORE_PLACEMENT_PROFILE_H_
#define DITSERVE_CORE_PLACEMENT_PROFILE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/base/dtype.h"
#include "core/base/memory.h"
#include "core/storage/module.h"

namespace ditserve {

// Whether `device` is written as CUDA devices are: "cuda", or "cuda:N" with N from 0 to 999 and no leading zero.
bool IsCudaDevice(absl::string_view device);

// A vram_config as a user writes it: DiffSynth-Studio's keys; a key left out is nullopt.
struct VramConfig {
  std::optional<std::string> offload_dtype, offload_device;
  std::optional<std::string> onload_dtype, onload_device;
  std::optional<std::string> preparing_dtype, preparing_device;
  std::optional<std::string> computation_dtype, computation_device;
  // Module type to wrapper: {"torch.nn.Linear": "AutoWrappedLinear"}. Empty: the model class's default map.
  std::map<std::string, std::string> module_map;

  friend bool operator==(const VramConfig&, const VramConfig&) = default;
};

// One of the places a module passes on its way from the checkpoint to the operation.
struct Station {
  Tier tier;
  DType dtype;  // Meaningless on disk, where weights are as stored.

  friend bool operator==(const Station&, const Station&) = default;
};

// A checked vram_config and vram_limit, ready for use.
struct Profile {
  std::string name;         // Empty for a profile given inline.
  std::string description;  // Shown to users.
  Station offload, onload, preparing, computation;
  std::string device;  // Of several, the one that it names, and that alone computes it; empty: whichever does.
  // Device bytes up to which modules are kept in their preparing form; nullopt: only the server's budget.
  std::optional<int64_t> vram_limit_bytes;
  // Types of the modules that are managed ("Linear", "RMSNorm"); others stay in computation form on the device.
  std::vector<std::string> managed_types;

  bool Manages(absl::string_view module_type) const;

  // Whether a device of that name may compute it.
  bool MayUse(absl::string_view device_name) const { return device.empty() || device == device_name; }

  friend bool operator==(const Profile&, const Profile&) = default;
};

// The dtype in which operations with a module are carried out where its profile computes in `computation`. In
// float8_e4m3fn that is so of a Linear whose weight has sides that are multiples of 16, as GPUs multiply them; anything
// else takes part in bfloat16.
DType ComputationDType(const ModuleSpec& module, DType computation);

// What a profile is checked against.
struct ProfileTarget {
  std::vector<std::string> devices;       // Those this server computes on: {"cpu"}, {"cuda:0", "cuda:1"}.
  std::vector<std::string> module_types;  // Types of the model that hold parameters; default map: all of them.
};

// Checks `config` and fills in DiffSynth-Studio's defaults.
//
// `field` is where the config stands in the caller's input ("vram_config", "profiles.disk"); errors begin with the
// offending key's path below it and say what would be valid. Errors: InvalidArgument for what is nowhere valid
// (unknown dtype, device, module type; a faster tier below a slower one; vram_limit_gib negative, not finite or too
// large); FailedPrecondition for a device that this server does not compute on.
absl::StatusOr<Profile> ResolveProfile(const std::string& name, const VramConfig& config,
                                       std::optional<double> vram_limit_gib, const ProfileTarget& target,
                                       const std::string& field);

// Checks a limit in GiB and converts it to bytes. `field` as above.
absl::StatusOr<int64_t> VramLimitBytes(double vram_limit_gib, const std::string& field);

// All eight keys of a resolved profile, as a user would write them ("accelerator" for a device that it does not name).
// `module_map` names the managed types.
VramConfig ToVramConfig(const Profile& profile);

}  // namespace ditserve

#endif  // DITSERVE_CORE_PLACEMENT_PROFILE_H_
