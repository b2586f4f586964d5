#include "client/ditctl/progress.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace ditserve::ditctl {

Progress::~Progress() {
  if (drawn_) out_ << "\n" << std::flush;
}

void Progress::Show(double done, double total, const std::string& what, absl::Time now) {
  const double part = total > 0 ? std::clamp(done / total, 0.0, 1.0) : 0;
  if (part == 0) begun_ = now;
  if (terminal_) return DrawBar(part, what, now);
  const int tenth = static_cast<int>(part * 10);
  if (tenth <= last_tenth_) return;
  last_tenth_ = tenth;
  out_ << absl::StrFormat("%3.0f%%  %s\n", part * 100, what) << std::flush;
}

void Progress::DrawBar(double part, const std::string& what, absl::Time now) {
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(part * kWidth);
  std::string left;
  if (begun_ && part > 0) {
    left = absl::StrFormat(", %.0f s left", absl::ToDoubleSeconds(now - *begun_) * (1 - part) / part);
  }
  // Erases what is left of a longer line before.
  out_ << absl::StrFormat("\r[%s%s] %3.0f%%  %s%s\x1b[K", std::string(filled, '#'), std::string(kWidth - filled, '.'),
                          part * 100, what, left)
       << std::flush;
  drawn_ = true;
}

}  // namespace ditserve::ditctl
