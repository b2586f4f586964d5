#ifndef DITSERVE_SERVER_CONFIG_FORMS_H_
#define DITSERVE_SERVER_CONFIG_FORMS_H_

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/base/budget_spec.h"

// What values of the configuration look like; each form is how an error tells it.
namespace ditserve {

bool IsListenAddress(absl::string_view address);
inline constexpr absl::string_view kListenForm =
    "expected host:port with a port from 0 to 65535, or unix:/path of at most 107 bytes";

// A listen address, or "none".
bool IsAdminAddress(absl::string_view address);
inline constexpr absl::string_view kAdminForm =
    "expected host:port with a port from 0 to 65535, unix:/path of at most 107 bytes, or none";

// host:port or "none".
bool IsMetricsAddress(absl::string_view address);
inline constexpr absl::string_view kMetricsForm = "expected host:port with a port from 0 to 65535, or none";

// Whether a listen address can be reached from this machine alone: a Unix socket, localhost, 127.0.0.0/8 or ::1.
bool IsLocalAddress(absl::string_view address);

// Names appear in URLs, metrics and logs.
bool IsName(absl::string_view name);
inline constexpr absl::string_view kNameForm = "a name has 1 to 64 letters, digits, '.', '_' or '-'";

// What is wrong with devices to compute on; empty: nothing.
std::string WrongDevices(const std::vector<std::string>& devices);
inline constexpr size_t kMostDevices = 16;

// How a budget is written, and what is said of one that is not so.
struct BudgetForm {
  std::optional<BudgetSpec> (*parse)(absl::string_view);
  absl::string_view expected;
};
inline constexpr BudgetForm kDeviceBudget = {ParseDeviceBudget, kDeviceBudgetForm};
inline constexpr BudgetForm kHostBudget = {ParseBudget, kBudgetForm};

bool IsLogLevel(absl::string_view level);
inline constexpr absl::string_view kLogLevelForm = "expected debug, info, warn or error";

bool IsLogFormat(absl::string_view format);
inline constexpr absl::string_view kLogFormatForm = "expected text or json";

}  // namespace ditserve

#endif  // DITSERVE_SERVER_CONFIG_FORMS_H_
