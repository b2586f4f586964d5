#include "client/ditctl/progress.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ditserve::ditctl {

Progress::~Progress() {
  if (drawn_) out_ << "\n" << std::flush;
}

void Progress::Show(double done, double total, const std::string& what, absl::Time now) {
  const double part = total > 0 ? done / total : 0;
  const absl::Duration passed = now - begun_;
  const std::string left =
      part > 0 ? absl::StrFormat("%.0f s left", absl::ToDoubleSeconds(passed) * (1 - part) / part) : std::string("");
  if (!terminal_) {
    const int tenth = static_cast<int>(part * 10);
    if (tenth <= last_tenth_) return;
    last_tenth_ = tenth;
    out_ << absl::StrFormat("%3.0f%%  %s\n", part * 100, what) << std::flush;
    return;
  }
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(part * kWidth);
  // Erases what is left of a longer line before.
  out_ << absl::StrFormat("\r[%s%s] %3.0f%%  %s  %s\x1b[K", std::string(filled, '#'), std::string(kWidth - filled, '.'),
                          part * 100, what, left)
       << std::flush;
  drawn_ = true;
}

}  // namespace ditserve::ditctl
