#include "core/residency/transfer_pace.h"

#include <utility>

namespace ditserve {

void TransferPace::Begin(absl::Duration now, const BytesRead& read) {
  if (since_) return;
  since_ = now;
  read_ = read;
}

void TransferPace::End(absl::Duration now, const BytesRead& read) {
  if (!since_) return;
  const absl::Duration waited = now - *std::exchange(since_, std::nullopt);
  const int64_t from_checkpoint = read.checkpoint - read_.checkpoint, from_copies = read.copies - read_.copies;
  // Of a time in which both were read nobody can say which took it.
  if (from_copies == 0) checkpoint_.Add(from_checkpoint, waited);
  if (from_checkpoint == 0 && from_copies > 0) copies_.Add(from_copies, waited);
}

void TransferPace::Sum::Add(int64_t more_bytes, absl::Duration more_time) {
  bytes += more_bytes;
  time += more_time;
  if (bytes <= kRememberedBytes) return;
  bytes /= 2;
  time /= 2;
}

std::optional<double> TransferPace::Sum::speed() const {
  if (bytes == 0 || time <= absl::ZeroDuration()) return std::nullopt;
  return static_cast<double>(bytes) / absl::ToDoubleSeconds(time);
}

}  // namespace ditserve
