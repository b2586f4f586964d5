#ifndef DITSERVE_SERVER_ENGINE_PROFILE_CATALOGUE_H_
#define DITSERVE_SERVER_ENGINE_PROFILE_CATALOGUE_H_

#include <string>
#include <vector>

#include "core/placement/profile.h"

namespace ditserve {

// The profiles a request may name, and what one given inline is checked against.
struct ProfileCatalogue {
  std::vector<Profile> profiles;
  std::string default_profile;  // One of `profiles`: that of requests that name none.
  ProfileTarget target;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_PROFILE_CATALOGUE_H_
