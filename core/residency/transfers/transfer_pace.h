#ifndef DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_PACE_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_PACE_H_

#include <cstdint>
#include <optional>

#include "absl/time/time.h"
#include "core/residency/transfers/transfer_work.h"

namespace ditserve {

// What transfers have done so far.
struct Transferred {
  int64_t checkpoint_bytes = 0;  // Read from it.
  int64_t copy_bytes = 0;        // Read from copies.
  absl::Duration work;           // Processor time.
};

// Bytes a second where moving is what takes the time; nullopt: none were read while it could be measured.
struct TransferSpeeds {
  std::optional<double> checkpoint;
  std::optional<double> copies;
  // Of fresh memory: for these bytes moving takes so much longer. Nullopt: no longer, or none was written.
  std::optional<double> fresh;
};

// How long a checkpoint lets one wait for its bytes, while a rider waits for them and nobody computes, beside the work
// that transfers have with them: TransferWork knows that, and the two add up. Beside computing the checkpoint may be
// slower, and nobody waits.
//
// Thread safety: thread-compatible.
class TransferPace {
 public:
  // `processors`: on how many transfers work at a time.
  explicit TransferPace(int processors) : processors_(processors) {}

  // From now on everybody waits.
  void Begin(absl::Duration now, const Transferred& done);
  // Whether that is so.
  bool waits() const { return since_.has_value(); }
  // From now on somebody computes.
  void End(absl::Duration now, const Transferred& done);
  // It was not transfers that were waited for.
  void Drop() { since_.reset(); }

  // Seconds a byte; nullopt: nothing was waited for.
  std::optional<double> checkpoint() const;

 private:
  int processors_;
  std::optional<absl::Duration> since_;
  Transferred done_;  // Then.
  TimedBytes checkpoint_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_PACE_H_
