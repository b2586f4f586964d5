#include "server/config/catalogue.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace ditserve {
namespace {

// An error of the profile at `path`, which begins with the path of a key, with the key's place in front; the profile's
// own where the key is not there.
absl::Status WithPlace(const absl::Status& error, const std::string& path,
                       const std::map<std::string, std::string>& places) {
  absl::string_view rest(error.message().data(), error.message().size());
  if (!absl::ConsumePrefix(&rest, path + ".")) return error;
  const absl::string_view key = rest.substr(0, rest.find_first_of(":."));
  const auto place = places.find(std::string(key));
  if (place != places.end()) {
    return absl::Status(error.code(), absl::StrCat(absl::StripSuffix(place->second, ": "), rest.substr(key.size())));
  }
  const auto own = places.find("");
  if (own == places.end()) return error;
  return absl::Status(error.code(), absl::StrCat(absl::StripSuffix(own->second, path + ": "), error.message()));
}

}  // namespace

absl::StatusOr<ProfileCatalogue> MakeCatalogue(const ServerConfig& config) {
  ProfileCatalogue catalogue;
  catalogue.target = {config.devices, {"Linear", "RMSNorm"}};
  catalogue.default_profile = config.default_profile;
  std::vector<std::string> names;
  for (const ProfileSpec& spec : config.profiles) {
    const std::string path = "profiles." + spec.name;
    absl::StatusOr<Profile> profile =
        ResolveProfile(spec.name, spec.vram_config, spec.vram_limit_gib, catalogue.target, path);
    if (!profile.ok()) return WithPlace(profile.status(), path, spec.places);
    profile->description = spec.description;
    catalogue.profiles.push_back(*std::move(profile));
    names.push_back(spec.name);
  }
  if (std::find(names.begin(), names.end(), config.default_profile) == names.end()) {
    return absl::NotFoundError(absl::StrCat(config.default_profile_place, "no profile is named '",
                                            config.default_profile, "'; there are: ", absl::StrJoin(names, ", ")));
  }
  return catalogue;
}

}  // namespace ditserve
