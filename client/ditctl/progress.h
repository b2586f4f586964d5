#ifndef DITSERVE_CLIENT_DITCTL_PROGRESS_H_
#define DITSERVE_CLIENT_DITCTL_PROGRESS_H_

#include <ostream>
#include <string>

#include "absl/time/time.h"

namespace ditserve::ditctl {

// Shows how far something is: a bar that is drawn over itself on a terminal, elsewhere a line every tenth part.
class Progress {
 public:
  Progress(std::ostream& out, bool terminal, absl::Time begun) : out_(out), terminal_(terminal), begun_(begun) {}
  // Ends the bar's line.
  ~Progress();

  // `done` of `total`; `what` stands behind the figures. `now` tells what time is left.
  void Show(double done, double total, const std::string& what, absl::Time now);

 private:
  std::ostream& out_;
  const bool terminal_;
  const absl::Time begun_;
  int last_tenth_ = 0;
  bool drawn_ = false;
};

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_PROGRESS_H_
