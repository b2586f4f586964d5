#ifndef DITSERVE_CORE_RESIDENCY_TRANSFER_PACE_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFER_PACE_H_

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace ditserve {

// Bytes that transfers have read so far.
struct BytesRead {
  int64_t checkpoint = 0;
  int64_t copies = 0;
};

// Bytes a second; nullopt: none were read while it could be measured.
struct TransferSpeeds {
  std::optional<double> checkpoint;
  std::optional<double> copies;
};

// How fast weights move where moving is what takes the time: while a rider waits for them and nobody computes. Beside
// computing they are slower, and nobody waits.
//
// Thread safety: thread-compatible.
class TransferPace {
 public:
  // Of older ones, half counts each time that so much more was read.
  static constexpr int64_t kRememberedBytes = int64_t{4} << 30;

  // From now on everybody waits.
  void Begin(absl::Duration now, const BytesRead& read);
  // From now on somebody computes.
  void End(absl::Duration now, const BytesRead& read);
  // It was not transfers that were waited for.
  void Drop() { since_.reset(); }

  TransferSpeeds speeds() const { return {checkpoint_.speed(), copies_.speed()}; }

 private:
  struct Sum {
    int64_t bytes = 0;
    absl::Duration time;
    void Add(int64_t more_bytes, absl::Duration more_time);
    std::optional<double> speed() const;
  };

  std::optional<absl::Duration> since_;
  BytesRead read_;  // Then.
  Sum checkpoint_, copies_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFER_PACE_H_
