#ifndef DITSERVE_CORE_MEMORY_STREAMING_WINDOW_H_
#define DITSERVE_CORE_MEMORY_STREAMING_WINDOW_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"

namespace ditserve {

// The memory through which copies stream that are not kept. It consists of a few segments, and copies take parts of
// them: what one leaves the next one gets, of whatever size, because writing to fresh memory costs more than copying.
// What no copy has is booked as staging.
//
// Thread safety: thread-compatible.
class StreamingWindow {
 public:
  explicit StreamingWindow(Device* device) : device_(device) {}

  // Adds a segment of the reserved bytes.
  void Add(Reservation reservation);

  // Memory for a copy, booked as weights; nullopt if there is no hole of `bytes`.
  std::optional<Buffer> Take(int64_t bytes);

  bool Owns(const Buffer& part) const { return SegmentOf(part) != segments_.end(); }
  void Put(Buffer part);

  // Which of `parts`, put back, make a hole of `bytes`: of the first ones, no more than it takes, and none that does
  // not lie in the hole. Empty if all together make none.
  std::vector<size_t> PartsInTheWay(int64_t bytes, absl::Span<const Buffer* const> parts) const;

  // Removes a segment that nobody has a part of, the smallest; nullopt if there is none.
  std::optional<Buffer> RemoveFree();

  int segments() const { return static_cast<int>(segments_.size()); }
  // Of at least `bytes`.
  int SegmentsOf(int64_t bytes) const;

 private:
  // Free bytes, of which operations up to `in_use_until` still read.
  struct Hole {
    int64_t bytes;
    Buffer::Events in_use_until;
  };
  struct Segment {
    Reservation free;  // Of all holes, as staging. Given back after the memory.
    std::shared_ptr<Mapping> mapping;
    std::map<int64_t, Hole> holes;  // By their offset. Neighbours differ in what they wait for.
  };
  using Segments = std::vector<Segment>;

  Segments::const_iterator SegmentOf(const Buffer& part) const;
  static std::optional<Buffer> TakeFrom(Segment& segment, int64_t bytes);
  static void AddHole(Segment& segment, int64_t offset_bytes, Hole hole);

  Device* const device_;
  Segments segments_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_MEMORY_STREAMING_WINDOW_H_
