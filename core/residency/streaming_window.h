#ifndef DITSERVE_CORE_RESIDENCY_STREAMING_WINDOW_H_
#define DITSERVE_CORE_RESIDENCY_STREAMING_WINDOW_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "core/memory/ledger.h"

namespace ditserve {

// The bytes through which copies stream that are not kept: a few segments' worth. Where they are is the arena's affair.
// What no copy has is booked as staging.
//
// Thread safety: thread-compatible.
class StreamingWindow {
 public:
  // Adds a segment of the reserved bytes.
  void Add(Reservation reservation) {
    segments_.push_back(reservation.bytes());
    Put(std::move(reservation));
  }

  // Bytes for a copy, booked as weights; nullopt if there are not as many.
  std::optional<Reservation> Take(int64_t bytes) {
    if (bytes > free_.bytes()) return std::nullopt;
    Reservation taken = free_.Split(bytes);
    taken.SetKind(MemoryKind::kWeights);
    return taken;
  }

  void Put(Reservation part) {
    part.SetKind(MemoryKind::kStaging);
    if (free_.bytes() == 0) {
      free_ = std::move(part);
    } else {
      free_.Merge(std::move(part));
    }
  }

  // How many of parts of these sizes, put back, make `bytes` free; 0 if all together do not.
  size_t PartsInTheWay(int64_t bytes, absl::Span<const int64_t> parts) const {
    int64_t free = free_.bytes();
    for (size_t i = 0; i < parts.size(); ++i) {
      free += parts[i];
      if (free >= bytes) return i + 1;
    }
    return 0;
  }

  // Removes the smallest segment, if so much is free.
  std::optional<Reservation> RemoveFree() {
    const auto smallest = std::min_element(segments_.begin(), segments_.end());
    if (smallest == segments_.end() || *smallest > free_.bytes()) return std::nullopt;
    Reservation removed = free_.Split(*smallest);
    segments_.erase(smallest);
    return removed;
  }

  int segments() const { return static_cast<int>(segments_.size()); }
  // Of at least `bytes`.
  int SegmentsOf(int64_t bytes) const {
    return static_cast<int>(
        std::count_if(segments_.begin(), segments_.end(), [bytes](int64_t segment) { return segment >= bytes; }));
  }

 private:
  Reservation free_;
  std::vector<int64_t> segments_;  // Their bytes.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_STREAMING_WINDOW_H_
