#include "core/placement/profile.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

constexpr int64_t kMaxLimitGib = 1 << 20;
constexpr absl::string_view kComputedDTypes = "float32, bfloat16, float16, float8_e4m3fn";
constexpr absl::string_view kDTypes = "float32, bfloat16, float16, float8_e4m3fn, disk";
constexpr absl::string_view kDevices = "disk, cpu, cuda, cuda:N, accelerator";
constexpr absl::string_view kWrappers = "AutoWrappedLinear, AutoWrappedModule, AutoWrappedNonRecurseModule";

// What a user wrote, as it may be shown: printable and short.
std::string Quoted(absl::string_view text) { return absl::StrCat("'", absl::CHexEscape(text.substr(0, 64)), "'"); }

// "torch.nn.Linear" -> "Linear".
absl::string_view LastComponent(absl::string_view path) {
  const size_t dot = path.rfind('.');
  return dot == absl::string_view::npos ? path : path.substr(dot + 1);
}

std::optional<DType> WeightDTypeFromName(absl::string_view name) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3}) {
    if (Name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

std::string DTypeKey(const Station& station) {
  return station.tier == Tier::kDisk ? "disk" : std::string(Name(station.dtype));
}

std::string DeviceKey(const Station& station, const std::string& device) {
  if (station.tier == Tier::kDisk) return "disk";
  if (station.tier == Tier::kHost) return "cpu";
  return device.empty() ? "accelerator" : device;
}

// One state's two keys as written.
struct State {
  absl::string_view name;
  const std::optional<std::string>& dtype;
  const std::optional<std::string>& device;

  std::string dtype_key() const { return absl::StrCat(name, "_dtype"); }
  std::string device_key() const { return absl::StrCat(name, "_device"); }
};

// Resolves one vram_config; remembers where errors are to point.
class Resolver {
 public:
  Resolver(const ProfileTarget& target, const std::string& field) : target_(target), field_(field) {}

  absl::StatusOr<Profile> Resolve(const VramConfig& config) {
    const State offload{"offload", config.offload_dtype, config.offload_device};
    const State onload{"onload", config.onload_dtype, config.onload_device};
    const State preparing{"preparing", config.preparing_dtype, config.preparing_device};
    Profile profile;
    DITSERVE_ASSIGN_OR_RETURN(profile.computation, Computation(config));
    DITSERVE_ASSIGN_OR_RETURN(profile.offload, StationOf(offload, profile.computation));
    DITSERVE_ASSIGN_OR_RETURN(profile.onload, StationOf(onload, profile.computation));
    DITSERVE_ASSIGN_OR_RETURN(profile.preparing, StationOf(preparing, profile.computation));
    DITSERVE_RETURN_IF_ERROR(CheckRising(onload, profile.onload, offload, profile.offload));
    DITSERVE_RETURN_IF_ERROR(CheckRising(preparing, profile.preparing, onload, profile.onload));
    DITSERVE_ASSIGN_OR_RETURN(profile.managed_types, ManagedTypes(config));
    if (target_.devices.size() > 1) profile.device = device_;
    return profile;
  }

 private:
  absl::Status Wrong(absl::string_view key, absl::string_view what) const {
    return FieldError(absl::StrCat(field_, ".", key), what);
  }

  absl::Status NotHere(absl::string_view key, absl::string_view device) const {
    return FieldError(absl::StrCat(field_, ".", key),
                      absl::StrCat(Quoted(device), " is not here: this server computes on ",
                                   absl::StrJoin(target_.devices, ", "), "; 'accelerator' is valid on every server"),
                      absl::StatusCode::kFailedPrecondition);
  }

  absl::StatusOr<Tier> TierOf(absl::string_view key, const std::string& device) {
    if (device == "disk") return Tier::kDisk;
    if (device == "cpu") return Tier::kHost;
    if (device == "accelerator") return Tier::kDevice;
    if (!IsCudaDevice(device)) {
      return Wrong(key, absl::StrCat("unknown device ", Quoted(device), "; valid: ", kDevices));
    }
    if (device == "cuda" && absl::StartsWith(target_.devices.front(), "cuda")) return Tier::kDevice;
    const auto named = std::find(target_.devices.begin(), target_.devices.end(), device);
    if (named == target_.devices.end()) return NotHere(key, device);
    if (!device_.empty() && device_ != device) {
      return Wrong(key, absl::StrCat(Quoted(device), " beside ", Quoted(device_),
                                     ": one device computes a request; valid: one of them, or accelerator"));
    }
    device_ = device;
    return Tier::kDevice;
  }

  absl::StatusOr<DType> ComputationDType(const std::optional<std::string>& written) const {
    const auto wrong = [&](absl::string_view what) {
      return Wrong("computation_dtype", absl::StrCat(what, "; valid: ", kComputedDTypes));
    };
    if (!written) return wrong("missing");
    const absl::string_view name = absl::StripPrefix(*written, "torch.");
    if (name == "disk") return wrong("'disk' can't compute");
    const std::optional<DType> dtype = WeightDTypeFromName(name);
    if (!dtype) return wrong(absl::StrCat("unknown dtype ", Quoted(*written)));
    return *dtype;
  }

  absl::StatusOr<Station> Computation(const VramConfig& config) {
    DITSERVE_ASSIGN_OR_RETURN(const DType dtype, ComputationDType(config.computation_dtype));
    DITSERVE_ASSIGN_OR_RETURN(const Tier tier,
                              TierOf("computation_device", config.computation_device.value_or("accelerator")));
    if (tier == Tier::kDisk) return Wrong("computation_device", "'disk' can't compute; valid: accelerator");
    if (tier == Tier::kHost && target_.devices.front() != "cpu") return NotHere("computation_device", "cpu");
    return Station{Tier::kDevice, dtype};
  }

  absl::StatusOr<Station> StationOf(const State& state, const Station& computation) {
    const absl::string_view name = state.dtype ? absl::StripPrefix(*state.dtype, "torch.") : absl::string_view();
    const bool on_disk = state.dtype && name == "disk";
    const std::optional<DType> dtype = state.dtype ? WeightDTypeFromName(name) : computation.dtype;
    if (!dtype && !on_disk) {
      return Wrong(state.dtype_key(), absl::StrCat("unknown dtype ", Quoted(*state.dtype), "; valid: ", kDTypes));
    }
    Tier tier = on_disk ? Tier::kDisk : computation.tier;
    if (state.device) {
      DITSERVE_ASSIGN_OR_RETURN(tier, TierOf(state.device_key(), *state.device));
    }
    if (on_disk && tier != Tier::kDisk) {
      return Wrong(state.device_key(), absl::StrCat(Quoted(*state.device), " can't hold what ", state.dtype_key(),
                                                    " leaves on 'disk'; valid: disk, or another ", state.dtype_key()));
    }
    if (state.dtype && !on_disk && tier == Tier::kDisk) {
      return Wrong(state.dtype_key(),
                   absl::StrCat(Quoted(*state.dtype), " on disk: the checkpoint there is used as it ",
                                "is stored; valid: disk, or another ", state.device_key()));
    }
    return Station{tier, dtype.value_or(computation.dtype)};
  }

  absl::Status CheckRising(const State& upper, const Station& upper_station, const State& lower,
                           const Station& lower_station) const {
    if (upper_station.tier >= lower_station.tier) return absl::OkStatus();
    return Wrong(upper.device_key(),
                 absl::StrCat(Quoted(upper.device.value_or(DeviceKey(upper_station, device_))), " is slower than ",
                              lower.device_key(), " ", Quoted(lower.device.value_or(DeviceKey(lower_station, device_))),
                              "; weights only move up: valid is the same tier or a faster one"));
  }

  absl::StatusOr<std::vector<std::string>> ManagedTypes(const VramConfig& config) const {
    if (config.module_map.empty()) return target_.module_types;
    std::vector<std::string> types;
    for (const auto& [type, wrapper] : config.module_map) {
      const std::string name(LastComponent(type));
      const absl::string_view wraps = LastComponent(wrapper);
      if (std::find(target_.module_types.begin(), target_.module_types.end(), name) == target_.module_types.end()) {
        return Wrong("module_map", absl::StrCat("unknown module type ", Quoted(type),
                                                "; valid: ", absl::StrJoin(target_.module_types, ", ")));
      }
      if (std::find(types.begin(), types.end(), name) != types.end()) {
        return Wrong("module_map", absl::StrCat("names the module type ", Quoted(name), " twice"));
      }
      const bool linear = wraps == "AutoWrappedLinear";
      if (!linear && wraps != "AutoWrappedModule" && wraps != "AutoWrappedNonRecurseModule") {
        return Wrong("module_map", absl::StrCat("unknown wrapper ", Quoted(wrapper), "; valid: ", kWrappers));
      }
      if (linear && name != "Linear") {
        return Wrong("module_map", absl::StrCat("AutoWrappedLinear wraps Linear, not ", Quoted(type)));
      }
      types.push_back(name);
    }
    return types;
  }

  const ProfileTarget& target_;
  const std::string& field_;
  std::string device_;  // The one that was named.
};

}  // namespace

bool IsCudaDevice(absl::string_view device) {
  if (device == "cuda") return true;
  if (!absl::ConsumePrefix(&device, "cuda:") || device.empty() || device.size() > 3) return false;
  if (device.size() > 1 && device[0] == '0') return false;
  return std::all_of(device.begin(), device.end(), absl::ascii_isdigit);
}

bool Profile::Manages(absl::string_view module_type) const {
  return std::find(managed_types.begin(), managed_types.end(), module_type) != managed_types.end();
}

DType ComputationDType(const ModuleSpec& module, DType computation) {
  constexpr int64_t kSides = 16;
  if (computation != DType::kFloat8E4M3) return computation;
  const std::vector<int64_t> sides = module.parameters.front().read_shape();
  const bool multiplied = module.type == "Linear" &&
                          std::all_of(sides.begin(), sides.end(), [](int64_t side) { return side % kSides == 0; });
  return multiplied ? computation : ActivationDType(computation);
}

absl::StatusOr<Profile> ResolveProfile(const std::string& name, const VramConfig& config,
                                       std::optional<double> vram_limit_gib, const ProfileTarget& target,
                                       const std::string& field) {
  DITSERVE_ASSIGN_OR_RETURN(Profile profile, Resolver(target, field).Resolve(config));
  profile.name = name;
  if (vram_limit_gib) {
    DITSERVE_ASSIGN_OR_RETURN(profile.vram_limit_bytes, VramLimitBytes(*vram_limit_gib, field + ".vram_limit_gib"));
  }
  return profile;
}

absl::StatusOr<int64_t> VramLimitBytes(double vram_limit_gib, const std::string& field) {
  if (!(vram_limit_gib >= 0 && vram_limit_gib <= static_cast<double>(kMaxLimitGib))) {  // Also refuses NaN.
    return FieldError(field, absl::StrCat("expected 0 to ", kMaxLimitGib, " GiB, found ", vram_limit_gib));
  }
  return static_cast<int64_t>(std::floor(vram_limit_gib * 0x1p30));
}

VramConfig ToVramConfig(const Profile& profile) {
  VramConfig config;
  config.offload_dtype = DTypeKey(profile.offload);
  config.offload_device = DeviceKey(profile.offload, profile.device);
  config.onload_dtype = DTypeKey(profile.onload);
  config.onload_device = DeviceKey(profile.onload, profile.device);
  config.preparing_dtype = DTypeKey(profile.preparing);
  config.preparing_device = DeviceKey(profile.preparing, profile.device);
  config.computation_dtype = DTypeKey(profile.computation);
  config.computation_device = DeviceKey(profile.computation, profile.device);
  for (const std::string& type : profile.managed_types) {
    config.module_map[type] = type == "Linear" ? "AutoWrappedLinear" : "AutoWrappedModule";
  }
  return config;
}

}  // namespace ditserve
