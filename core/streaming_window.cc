#include "core/streaming_window.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace ditserve {
namespace {

template <typename Holes>
Buffer::Events EventsOf(Holes begin, Holes end) {
  Buffer::Events events;
  for (auto hole = begin; hole != end; ++hole) {
    const Buffer::Events& more = hole->second.in_use_until;
    events.insert(events.end(), more.begin(), more.end());
  }
  return events;
}

}  // namespace

void StreamingWindow::Add(Reservation reservation) {
  const int64_t bytes = reservation.bytes();
  auto mapping = std::make_shared<Mapping>(device_, reservation.memory(), bytes);
  Segment& segment = segments_.emplace_back(Segment{std::move(mapping), std::move(reservation), {}});
  segment.free.SetKind(MemoryKind::kStaging);
  segment.holes[0] = {bytes, {}};
}

std::optional<Buffer> StreamingWindow::Take(int64_t bytes) {
  for (Segment& segment : segments_) {
    if (std::optional<Buffer> part = TakeFrom(segment, bytes)) return part;
  }
  return std::nullopt;
}

// The first neighbouring holes that together have the bytes.
std::optional<Buffer> StreamingWindow::TakeFrom(Segment& segment, int64_t bytes) {
  auto first = segment.holes.begin();
  int64_t end = 0;
  for (auto hole = first; hole != segment.holes.end(); ++hole) {
    if (hole->first != end) first = hole;
    end = hole->first + hole->second.bytes;
    if (end - first->first < bytes) continue;
    const int64_t begin = first->first;
    Buffer::Events events = EventsOf(first, std::next(hole));
    const Hole rest = {end - begin - bytes, hole->second.in_use_until};
    segment.holes.erase(first, std::next(hole));
    if (rest.bytes > 0) segment.holes[begin + bytes] = rest;
    Reservation taken = segment.free.Split(bytes);
    taken.SetKind(MemoryKind::kWeights);
    return Buffer(segment.mapping, begin, std::move(taken), std::move(events));
  }
  return std::nullopt;
}

StreamingWindow::Segments::const_iterator StreamingWindow::SegmentOf(const Buffer& part) const {
  return std::find_if(segments_.begin(), segments_.end(),
                      [&](const Segment& segment) { return segment.mapping == part.mapping(); });
}

void StreamingWindow::Put(Buffer part) {
  Segment& segment = segments_[static_cast<size_t>(SegmentOf(part) - segments_.begin())];
  part.reservation().SetKind(MemoryKind::kStaging);
  AddHole(segment, part.offset_bytes(), {part.size_bytes(), part.in_use_until()});
  segment.free.Merge(std::move(part.reservation()));
  part.InUseUntil(nullptr);  // The hole waits.
}

void StreamingWindow::AddHole(Segment& segment, int64_t offset_bytes, Hole hole) {
  auto next = segment.holes.lower_bound(offset_bytes);
  if (next != segment.holes.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.bytes == offset_bytes && before->second.in_use_until == hole.in_use_until) {
      offset_bytes = before->first;
      hole.bytes += before->second.bytes;
      segment.holes.erase(before);
    }
  }
  if (next != segment.holes.end() && next->first == offset_bytes + hole.bytes &&
      next->second.in_use_until == hole.in_use_until) {
    hole.bytes += next->second.bytes;
    segment.holes.erase(next);
  }
  segment.holes[offset_bytes] = std::move(hole);
}

bool StreamingWindow::RemoveFree(std::vector<Buffer>& garbage) {
  auto smallest = segments_.end();
  for (auto segment = segments_.begin(); segment != segments_.end(); ++segment) {
    if (segment->free.bytes() < segment->mapping->bytes()) continue;
    if (smallest == segments_.end() || segment->mapping->bytes() < smallest->mapping->bytes()) smallest = segment;
  }
  if (smallest == segments_.end()) return false;
  Buffer::Events events = EventsOf(smallest->holes.begin(), smallest->holes.end());
  garbage.emplace_back(std::move(smallest->mapping), 0, std::move(smallest->free), std::move(events));
  segments_.erase(smallest);
  return true;
}

int64_t StreamingWindow::largest_bytes() const {
  int64_t largest = 0;
  for (const Segment& segment : segments_) largest = std::max(largest, segment.mapping->bytes());
  return largest;
}

int64_t StreamingWindow::bytes() const {
  int64_t bytes = 0;
  for (const Segment& segment : segments_) bytes += segment.mapping->bytes();
  return bytes;
}

}  // namespace ditserve
