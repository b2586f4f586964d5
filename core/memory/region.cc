#include "core/memory/region.h"

#include <algorithm>
#include <cassert>
#include <iterator>

namespace ditserve {

std::optional<int64_t> Region::Take(int64_t bytes) {
  assert(bytes > 0);
  if (bytes > size_bytes_) return std::nullopt;
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  auto best = holes_.end();
  for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
    if (hole->second >= bytes && (best == holes_.end() || hole->second < best->second)) best = hole;
  }
  int64_t offset = end_;
  if (best != holes_.end()) {
    offset = best->first;
    const int64_t left = best->second - bytes;
    holes_.erase(best);
    if (left > 0) holes_[offset + bytes] = left;
  } else if (bytes > size_bytes_ - end_) {
    return std::nullopt;
  } else {
    end_ += bytes;
    most_bytes_ = std::max(most_bytes_, end_);
  }
  parts_[offset] = bytes;
  used_bytes_ += bytes;
  return offset;
}

void Region::Give(int64_t offset) {
  const auto part = parts_.find(offset);
  assert(part != parts_.end());
  int64_t begin = offset, end = offset + part->second;
  used_bytes_ -= part->second;
  parts_.erase(part);
  const auto next = holes_.find(end);
  if (next != holes_.end()) {
    end += next->second;
    holes_.erase(next);
  }
  const auto after = holes_.lower_bound(begin);
  if (after != holes_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == begin) {
      begin = before->first;
      holes_.erase(before);
    }
  }
  if (end == end_) {
    end_ = begin;
  } else {
    holes_[begin] = end - begin;
  }
}

}  // namespace ditserve
