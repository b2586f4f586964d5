#ifndef DITSERVE_CLIENT_DITCTL_PROGRESS_H_
#define DITSERVE_CLIENT_DITCTL_PROGRESS_H_

#include <optional>
#include <ostream>
#include <string>

#include "absl/time/time.h"

namespace ditserve::ditctl {

// Shows how far something is: a bar that is drawn over itself on a terminal, elsewhere a line every tenth part.
//
// Thread safety: thread-compatible.
class Progress {
 public:
  Progress(std::ostream& out, bool terminal) : out_(out), terminal_(terminal) {}
  // Ends the bar's line.
  ~Progress();

  // `done` of `total`; `what` stands behind the figures. The time left is reckoned from when nothing was done yet.
  void Show(double done, double total, const std::string& what, absl::Time now);

 private:
  void DrawBar(double part, const std::string& what, absl::Time now);

  std::ostream& out_;
  const bool terminal_;
  std::optional<absl::Time> begun_;
  int last_tenth_ = 0;
  bool drawn_ = false;
};

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_PROGRESS_H_
