#include "server/config/forms.h"

#include <arpa/inet.h>

#include <algorithm>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/placement/profile.h"

namespace ditserve {

bool IsListenAddress(absl::string_view address) {
  constexpr size_t kMaxUnixPath = 107;  // What sockaddr_un takes.
  if (absl::ConsumePrefix(&address, "unix:")) return absl::StartsWith(address, "/") && address.size() <= kMaxUnixPath;
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return false;
  const absl::string_view port = address.substr(colon + 1);
  int number = 0;
  return !port.empty() && port.size() <= 5 && std::all_of(port.begin(), port.end(), absl::ascii_isdigit) &&
         absl::SimpleAtoi(port, &number) && number <= 65535;
}

bool IsAdminAddress(absl::string_view address) { return address == "none" || IsListenAddress(address); }

bool IsMetricsAddress(absl::string_view address) {
  return address == "none" || (!absl::StartsWith(address, "unix:") && IsListenAddress(address));
}

bool IsLocalAddress(absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) return true;
  const absl::string_view host = address.substr(0, address.rfind(':'));
  in_addr ipv4;
  if (inet_pton(AF_INET, std::string(host).c_str(), &ipv4) == 1) return ntohl(ipv4.s_addr) >> 24 == 127;
  return host == "localhost" || host == "[::1]";
}

bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

std::string WrongDevices(const std::vector<std::string>& devices) {
  if (devices.size() > kMostDevices) {
    return absl::StrCat("expected at most ", kMostDevices, " devices, found ", devices.size());
  }
  for (auto device = devices.begin(); device != devices.end(); ++device) {
    const bool is_cpu = *device == "cpu";
    if (!is_cpu && (*device == "cuda" || !IsCudaDevice(*device))) return "expected cpu or cuda:N";
    if (is_cpu && devices.size() > 1) return "cpu computes alone, found it beside others";
    if (std::find(devices.begin(), device, *device) != device) return absl::StrCat(*device, " stands twice");
  }
  return devices.empty() ? "expected at least one device, cpu or cuda:N" : "";
}

bool IsLogLevel(absl::string_view level) {
  return level == "debug" || level == "info" || level == "warn" || level == "error";
}

bool IsLogFormat(absl::string_view format) { return format == "text" || format == "json"; }

}  // namespace ditserve
