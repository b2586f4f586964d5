#include "core/profile.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"

namespace ditserve {
namespace {

constexpr double kMaxLimitGib = 1 << 20;
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

bool IsCudaDevice(absl::string_view device) {
  int index = 0;
  return device == "cuda" || (absl::ConsumePrefix(&device, "cuda:") && absl::SimpleAtoi(device, &index) && index >= 0);
}

// Resolves one vram_config; remembers where errors are to point.
class Resolver {
 public:
  Resolver(const ProfileTarget& target, const std::string& field) : target_(target), field_(field) {}

  absl::StatusOr<Profile> Resolve(const VramConfig& config) {
    Profile profile;
    if (!config.computation_dtype) return Wrong("computation_dtype", absl::StrCat("missing; valid: ", kComputed));
    DITSERVE_ASSIGN_OR_RETURN(profile.computation, Computation(config));
    DITSERVE_ASSIGN_OR_RETURN(profile.offload,
                              StationOf("offload", config.offload_dtype, config.offload_device, profile.computation));
    DITSERVE_ASSIGN_OR_RETURN(profile.onload,
                              StationOf("onload", config.onload_dtype, config.onload_device, profile.computation));
    DITSERVE_ASSIGN_OR_RETURN(profile.preparing, StationOf("preparing", config.preparing_dtype, config.preparing_device,
                                                           profile.computation));
    DITSERVE_RETURN_IF_ERROR(CheckRising("onload_device", profile.onload, "offload_device", profile.offload));
    DITSERVE_RETURN_IF_ERROR(CheckRising("preparing_device", profile.preparing, "onload_device", profile.onload));
    DITSERVE_ASSIGN_OR_RETURN(profile.managed_types, ManagedTypes(config));
    return profile;
  }

 private:
  static constexpr absl::string_view kComputed = "float32, bfloat16, float16";

  absl::Status Wrong(absl::string_view key, absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(field_, ".", key, ": ", what));
  }

  absl::StatusOr<Tier> TierOf(absl::string_view key, absl::string_view device) const {
    if (device == "disk") return Tier::kDisk;
    if (device == "cpu") return Tier::kHost;
    if (device == "accelerator" || device == target_.device) return Tier::kDevice;
    if (!IsCudaDevice(device)) {
      return Wrong(key, absl::StrCat("unknown device ", Quoted(device), "; valid: ", kDevices));
    }
    if (device == "cuda" && absl::StartsWith(target_.device, "cuda")) return Tier::kDevice;
    return absl::FailedPreconditionError(absl::StrCat(field_, ".", key, ": ", Quoted(device),
                                                      " is not here: this server computes on ", target_.device,
                                                      "; 'accelerator' is valid on every server"));
  }

  absl::StatusOr<Station> Computation(const VramConfig& config) const {
    const absl::string_view dtype = absl::StripPrefix(*config.computation_dtype, "torch.");
    const std::optional<DType> computed = WeightDTypeFromName(dtype);
    if (!computed || *computed == DType::kFloat8E4M3) {
      return Wrong("computation_dtype", absl::StrCat(Quoted(dtype), " can't be computed in; valid: ", kComputed));
    }
    const std::string device = config.computation_device.value_or("accelerator");
    DITSERVE_ASSIGN_OR_RETURN(const Tier tier, TierOf("computation_device", device));
    if (tier == Tier::kDisk) {
      return Wrong("computation_device", "'disk' can't compute; valid: accelerator, or its name");
    }
    if (tier == Tier::kHost && target_.device != "cpu") {
      return absl::FailedPreconditionError(absl::StrCat(field_, ".computation_device: this server computes on ",
                                                        target_.device, ", not on 'cpu'; valid: accelerator"));
    }
    return Station{Tier::kDevice, *computed};
  }

  absl::StatusOr<Station> StationOf(const std::string& state, const std::optional<std::string>& dtype,
                                    const std::optional<std::string>& device, const Station& computation) const {
    const std::string dtype_key = state + "_dtype", device_key = state + "_device";
    const absl::string_view name = dtype ? absl::StripPrefix(*dtype, "torch.") : absl::string_view();
    std::optional<DType> parsed;
    if (dtype && name != "disk") {
      parsed = WeightDTypeFromName(name);
      if (!parsed) return Wrong(dtype_key, absl::StrCat("unknown dtype ", Quoted(*dtype), "; valid: ", kDTypes));
    }
    const bool on_disk = dtype && name == "disk";
    Tier tier = on_disk ? Tier::kDisk : computation.tier;
    if (device) {
      DITSERVE_ASSIGN_OR_RETURN(tier, TierOf(device_key, *device));
    }
    if (on_disk && tier != Tier::kDisk) {
      return Wrong(device_key, absl::StrCat(Quoted(*device), " can't hold what ", dtype_key,
                                            " leaves on 'disk'; valid: disk, or another ", dtype_key));
    }
    if (parsed && tier == Tier::kDisk) {
      return Wrong(dtype_key, absl::StrCat(Quoted(*dtype), " on disk: the checkpoint there is used as it is stored; ",
                                           "valid: disk, or another ", device_key));
    }
    return Station{tier, parsed.value_or(computation.dtype)};
  }

  absl::Status CheckRising(absl::string_view key, const Station& upper, absl::string_view lower_key,
                           const Station& lower) const {
    if (upper.tier >= lower.tier) return absl::OkStatus();
    return Wrong(key, absl::StrCat("the ", Name(upper.tier), " is slower than the ", Name(lower.tier), " of ",
                                   lower_key, "; weights only move up: valid is the same tier or a faster one"));
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
};

std::string DTypeKey(const Station& station) {
  return station.tier == Tier::kDisk ? "disk" : std::string(Name(station.dtype));
}

std::string DeviceKey(const Station& station) {
  return station.tier == Tier::kDisk ? "disk" : station.tier == Tier::kHost ? "cpu" : "accelerator";
}

}  // namespace

absl::string_view Name(Tier tier) { return tier == Tier::kDisk ? "disk" : tier == Tier::kHost ? "host" : "device"; }

bool Profile::Manages(absl::string_view module_type) const {
  return std::find(managed_types.begin(), managed_types.end(), module_type) != managed_types.end();
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
  if (!(vram_limit_gib >= 0 && vram_limit_gib <= kMaxLimitGib)) {  // Also refuses NaN.
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": expected 0 to ", kMaxLimitGib, " GiB, found ", vram_limit_gib));
  }
  return static_cast<int64_t>(std::floor(vram_limit_gib * 0x1p30));
}

VramConfig ToVramConfig(const Profile& profile) {
  VramConfig config;
  config.offload_dtype = DTypeKey(profile.offload);
  config.offload_device = DeviceKey(profile.offload);
  config.onload_dtype = DTypeKey(profile.onload);
  config.onload_device = DeviceKey(profile.onload);
  config.preparing_dtype = DTypeKey(profile.preparing);
  config.preparing_device = DeviceKey(profile.preparing);
  config.computation_dtype = DTypeKey(profile.computation);
  config.computation_device = DeviceKey(profile.computation);
  for (const std::string& type : profile.managed_types) {
    config.module_map[type] = type == "Linear" ? "AutoWrappedLinear" : "AutoWrappedModule";
  }
  return config;
}

}  // namespace ditserve
