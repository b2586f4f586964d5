#ifndef DITSERVE_CORE_SPARE_BUFFERS_H_
#define DITSERVE_CORE_SPARE_BUFFERS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "core/buffer.h"

namespace ditserve {

// Allocated buffers of evicted copies, kept because writing to memory for the first time costs more than the copying.
// They stay reserved, as staging, and go when anything else wants their bytes.
//
// Thread safety: thread-compatible.
class SpareBuffers {
 public:
  void Put(Buffer buffer);

  // A buffer of `bytes`, or of a page more, booked as weights; nullopt if there is none.
  std::optional<Buffer> Take(Memory memory, int64_t bytes);

  // Bytes of `memory` in spares.
  int64_t Bytes(Memory memory) const;

  // Moves the oldest spares of `memory` to `garbage` until at least `bytes` were moved or none is left.
  void Discard(Memory memory, int64_t bytes, std::vector<Buffer>& garbage);

  void DiscardAll(std::vector<Buffer>& garbage);

 private:
  std::vector<Buffer> buffers_;  // Oldest first.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_SPARE_BUFFERS_H_
