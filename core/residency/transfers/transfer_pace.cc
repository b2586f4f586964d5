#include "core/residency/transfers/transfer_pace.h"

#include <algorithm>
#include <utility>

namespace ditserve {

void TransferPace::Begin(absl::Duration now, const Transferred& done) {
  if (since_) return;
  since_ = now;
  done_ = done;
}

void TransferPace::End(absl::Duration now, const Transferred& done) {
  if (!since_) return;
  const absl::Duration waited = now - *std::exchange(since_, std::nullopt);
  // What copies take beside work, where a device's link is between, nobody can say of a time in which both were read.
  if (waited == absl::ZeroDuration() || done.copy_bytes != done_.copy_bytes) return;
  checkpoint_.Add({done.checkpoint_bytes - done_.checkpoint_bytes, 0, waited - (done.work - done_.work) / processors_});
}

std::optional<double> TransferPace::checkpoint() const {
  if (checkpoint_.bytes == 0) return std::nullopt;
  return std::max(0.0, absl::ToDoubleSeconds(checkpoint_.time) / static_cast<double>(checkpoint_.bytes));
}

}  // namespace ditserve
