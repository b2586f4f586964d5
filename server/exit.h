#ifndef DITSERVE_SERVER_EXIT_H_
#define DITSERVE_SERVER_EXIT_H_

#include <string>

#include "absl/status/status.h"

namespace ditserve {

// The codes that the process ends with, beside 0.
inline constexpr int kFailed = 1;
inline constexpr int kWrongUsage = 2;

// Tells on standard error why the process ends; returns `code`.
int Fail(const absl::Status& why, int code);

// The same where there was to be a server: Kubernetes looks in `termination_log` for why a container ended. It is
// written where it is a file, and never made.
int FailToServe(const absl::Status& why, int code, const std::string& termination_log);

// Ends the process with why it can't serve, and as it is: destructors would wait for a device that does not answer.
[[noreturn]] void EndAtOnce(const absl::Status& why, const std::string& termination_log);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_EXIT_H_
