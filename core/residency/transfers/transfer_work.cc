#include "core/residency/transfers/transfer_work.h"

#include <algorithm>

namespace ditserve {

void TimedBytes::Add(const TimedBytes& more) {
  bytes += more.bytes;
  fresh_bytes += more.fresh_bytes;
  time += more.time;
  if (bytes <= kRemembered) return;
  bytes /= 2;
  fresh_bytes /= 2;
  time /= 2;
}

double TransferWork::Times::seconds_per_byte() const {
  const TimedBytes& known = used.bytes > 0 ? used : fresh;
  return absl::ToDoubleSeconds(known.time) / static_cast<double>(known.bytes);
}

void TransferWork::Add(const TransferStep& step, const TimedBytes& took) {
  if (took.bytes == 0) return;
  Times& times = steps_[step];
  (took.fresh_bytes > 0 ? times.fresh : times.used).Add(took);
}

std::optional<double> TransferWork::Of(const TransferStep& step) const {
  const auto found = steps_.find(step);
  if (found == steps_.end()) return std::nullopt;
  return found->second.seconds_per_byte();
}

std::optional<double> TransferWork::OfConversions() const {
  double bytes = 0, seconds = 0;
  for (const auto& [step, times] : steps_) {
    if (step.empty()) continue;
    const auto of_step = static_cast<double>(times.used.bytes + times.fresh.bytes);
    bytes += of_step;
    seconds += of_step * times.seconds_per_byte();
  }
  return bytes > 0 ? std::optional(seconds / bytes) : std::nullopt;
}

double TransferWork::OfFresh() const {
  double bytes = 0, seconds = 0;
  for (const auto& [step, times] : steps_) {
    if (times.used.bytes == 0) continue;
    bytes += static_cast<double>(times.fresh.fresh_bytes);
    seconds +=
        absl::ToDoubleSeconds(times.fresh.time) - static_cast<double>(times.fresh.bytes) * times.seconds_per_byte();
  }
  return bytes > 0 ? std::max(0.0, seconds / bytes) : 0;
}

}  // namespace ditserve
