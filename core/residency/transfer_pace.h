#ifndef DITSERVE_CORE_RESIDENCY_TRANSFER_PACE_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFER_PACE_H_

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace ditserve {

// Bytes that transfers have moved so far.
struct MovedBytes {
  int64_t checkpoint = 0;  // Read from it.
  int64_t copies = 0;      // Read from copies.
  int64_t fresh = 0;       // Of memory that was written for the first time.
};

// Bytes a second; nullopt: none were read while it could be measured.
struct TransferSpeeds {
  std::optional<double> checkpoint;
  std::optional<double> copies;
  // Of fresh memory: for these bytes moving takes so much longer. Nullopt: no longer, or none was written.
  std::optional<double> fresh;
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
  void Begin(absl::Duration now, const MovedBytes& moved);
  // From now on somebody computes.
  void End(absl::Duration now, const MovedBytes& moved);
  // It was not transfers that were waited for.
  void Drop() { since_.reset(); }

  TransferSpeeds speeds() const;

 private:
  struct Sum {
    int64_t bytes = 0;
    int64_t fresh_bytes = 0;
    absl::Duration time;
    void Add(int64_t more_bytes, int64_t more_fresh_bytes, absl::Duration more_time);
    std::optional<double> speed() const;
  };
  // What was read from one place.
  struct Reads {
    Sum used;   // While no fresh memory was written,
    Sum fresh;  // and while some was.
    Sum& Of(int64_t fresh_bytes) { return fresh_bytes > 0 ? fresh : used; }
    // Where all memory was fresh, nobody can say what of the time that took.
    std::optional<double> speed() const { return used.speed() ? used.speed() : fresh.speed(); }
  };

  std::optional<absl::Duration> since_;
  MovedBytes moved_;  // Then.
  Reads checkpoint_, copies_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFER_PACE_H_
