#include "core/residency/transfer_pace.h"

#include <utility>

namespace ditserve {

void TransferPace::Begin(absl::Duration now, const MovedBytes& moved) {
  if (since_) return;
  since_ = now;
  moved_ = moved;
}

void TransferPace::End(absl::Duration now, const MovedBytes& moved) {
  if (!since_) return;
  const absl::Duration waited = now - *std::exchange(since_, std::nullopt);
  const int64_t from_checkpoint = moved.checkpoint - moved_.checkpoint, from_copies = moved.copies - moved_.copies;
  const int64_t fresh = moved.fresh - moved_.fresh;
  // Of a time in which both were read nobody can say which took it.
  if (from_copies == 0) checkpoint_.Of(fresh).Add(from_checkpoint, fresh, waited);
  if (from_checkpoint == 0 && from_copies > 0) copies_.Of(fresh).Add(from_copies, fresh, waited);
}

TransferSpeeds TransferPace::speeds() const {
  TransferSpeeds speeds = {checkpoint_.speed(), copies_.speed(), std::nullopt};
  Sum longer;
  for (const Reads* const reads : {&checkpoint_, &copies_}) {
    const std::optional<double> speed = reads->used.speed();
    if (!speed) continue;
    longer.bytes += reads->fresh.fresh_bytes;
    longer.time += reads->fresh.time - absl::Seconds(static_cast<double>(reads->fresh.bytes) / *speed);
  }
  speeds.fresh = longer.speed();
  return speeds;
}

void TransferPace::Sum::Add(int64_t more_bytes, int64_t more_fresh_bytes, absl::Duration more_time) {
  bytes += more_bytes;
  fresh_bytes += more_fresh_bytes;
  time += more_time;
  if (bytes <= kRememberedBytes) return;
  bytes /= 2;
  fresh_bytes /= 2;
  time /= 2;
}

std::optional<double> TransferPace::Sum::speed() const {
  if (bytes == 0 || time <= absl::ZeroDuration()) return std::nullopt;
  return static_cast<double>(bytes) / absl::ToDoubleSeconds(time);
}

}  // namespace ditserve
