#ifndef DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_WORK_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_WORK_H_

#include <cstdint>
#include <map>
#include <optional>

#include "absl/time/time.h"
#include "core/residency/transfers/transfer_path.h"

namespace ditserve {

// Time that bytes took. Of older ones, half counts each time that so many more came.
struct TimedBytes {
  static constexpr int64_t kRemembered = int64_t{4} << 30;

  int64_t bytes = 0;
  int64_t fresh_bytes = 0;  // Of memory that was written for the first time.
  absl::Duration time;

  void Add(const TimedBytes& more);
};

// What transfers take of processors: their threads' processor time, by what they do to bytes, whether anybody waits for
// it or not. In seconds a byte of what is read.
//
// Thread safety: thread-compatible.
class TransferWork {
 public:
  struct Times {
    TimedBytes used;   // While no fresh memory was written,
    TimedBytes fresh;  // and while some was.
    // Where all memory was fresh, that is part of it.
    double seconds_per_byte() const;
  };

  void Add(const TransferStep& step, const TimedBytes& took);

  // Nullopt: it was never done.
  std::optional<double> Of(const TransferStep& step) const;
  // Of all conversions there were.
  std::optional<double> OfConversions() const;
  // What a byte of fresh memory takes beside, whatever is done to what is written there. Zero: nothing, or none was.
  double OfFresh() const;

  // All that was done.
  const std::map<TransferStep, Times>& steps() const { return steps_; }

 private:
  std::map<TransferStep, Times> steps_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_WORK_H_
