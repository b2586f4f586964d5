#ifndef DITSERVE_SERVER_OBSERVE_STATUS_PAGE_H_
#define DITSERVE_SERVER_OBSERVE_STATUS_PAGE_H_

#include <string>

#include "core/residency/residency_snapshot.h"

namespace ditserve {

// The text of status_page.html: a page that asks for status.json beside it every second and draws what it is told. It
// needs nothing else.
extern const char kStatusPage[];

// What status.json is: one moment of the residency, and the server's version.
std::string StatusJson(const ResidencySnapshot& snapshot, const std::string& version);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_OBSERVE_STATUS_PAGE_H_
