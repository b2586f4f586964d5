#include "tests/simulation/offline_optimum.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace ditserve::simulation {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// A set of modules as bits.
std::vector<int64_t> BytesOfSets(const std::vector<int64_t>& modules) {
  std::vector<int64_t> bytes(size_t{1} << modules.size());
  for (size_t set = 1; set < bytes.size(); ++set) {
    size_t first = 0;
    while ((set >> first & 1) == 0) ++first;
    bytes[set] = bytes[set & (set - 1)] + modules[first];
  }
  return bytes;
}

}  // namespace

int64_t LeastBytesMoved(const std::vector<int64_t>& modules, int laps, int64_t room_bytes, int64_t kept_bytes) {
  const std::vector<int64_t> bytes = BytesOfSets(modules);
  std::vector<int64_t> moved(bytes.size(), kNever);  // The least to come to this place with that set.
  moved[0] = 0;
  const auto reach = [](int64_t& least, int64_t by) { least = std::min(least, by); };
  for (size_t step = 0; step < modules.size() * static_cast<size_t>(laps); ++step) {
    const size_t at = step % modules.size(), module = size_t{1} << at;
    std::vector<int64_t> next(bytes.size(), kNever);
    for (size_t set = bytes.size(); set-- > 0;) {
      if (moved[set] == kNever) continue;
      for (size_t rest = set; rest != 0; rest &= rest - 1) {
        reach(moved[set & ~(rest & -rest)], moved[set]);  // One goes.
      }
      if ((set & module) != 0) {
        reach(next[set], moved[set]);
      } else if (bytes[set] + modules[at] <= room_bytes) {
        reach(next[set], moved[set] + modules[at]);
        if (bytes[set | module] <= kept_bytes) reach(next[set | module], moved[set] + modules[at]);
      }
    }
    moved = std::move(next);
  }
  return *std::min_element(moved.begin(), moved.end());
}

}  // namespace ditserve::simulation
