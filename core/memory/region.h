#ifndef DITSERVE_CORE_MEMORY_REGION_H_
#define DITSERVE_CORE_MEMORY_REGION_H_

#include <cstdint>
#include <limits>
#include <map>
#include <optional>

namespace ditserve {

// Which bytes of a region are in use: offsets alone, no memory. A part goes into the smallest hole that holds it, and
// behind all others where there is none. So where parts lie follows from the order in which they are taken and given,
// and never from the region's size: how far a region without end grows is how large one must be.
//
// Thread safety: thread-compatible.
class Region {
 public:
  // Parts begin at multiples of this: what LibTorch's own allocator for CUDA keeps to, and more than cuBLASLt asks for.
  static constexpr int64_t kAlignment = 512;

  Region() = default;  // Without end.
  explicit Region(int64_t size_bytes) : size_bytes_(size_bytes) {}

  // The offset of a part of at least `bytes`, which are more than 0; nullopt if the region has no hole for it.
  std::optional<int64_t> Take(int64_t bytes);
  // Gives back the part at this offset.
  void Give(int64_t offset);

  // Of parts.
  int64_t used_bytes() const { return used_bytes_; }
  // Where the farthest part ended, so far.
  int64_t most_bytes() const { return most_bytes_; }

 private:
  int64_t size_bytes_ = std::numeric_limits<int64_t>::max();
  std::map<int64_t, int64_t> parts_;  // Their sizes, by offset.
  std::map<int64_t, int64_t> holes_;  // Between parts; no two touch.
  int64_t end_ = 0;                   // Of the last part.
  int64_t used_bytes_ = 0;
  int64_t most_bytes_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_MEMORY_REGION_H_
