#ifndef DITSERVE_CLIENT_DITCTL_LIVE_VIEW_H_
#define DITSERVE_CLIENT_DITCTL_LIVE_VIEW_H_

#include <cstddef>
#include <optional>
#include <string>

#include "ditserve/v1/residency_service.pb.h"

namespace ditserve::ditctl {

// Draws one update of WatchResidency after the other; rates are differences between two.
//
// Thread safety: thread-compatible.
class LiveView {
 public:
  // Lines that each fit 100 columns.
  std::string Show(const v1::WatchResidencyResponse& update);

 private:
  std::string Transfers(const v1::WatchResidencyResponse& update) const;

  std::optional<v1::WatchResidencyResponse> last_;
};

// As much of the beginning of `text` as a terminal of this size shows without scrolling.
std::string Fit(const std::string& text, size_t rows, size_t columns);

// A memory after its budget was changed.
std::string DescribeBudget(const v1::MemoryUse& memory);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_LIVE_VIEW_H_
