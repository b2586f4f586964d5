#include "core/memory/streaming_window.h"

#include <algorithm>
#include <iterator>
#include <limits>
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
  Segment& segment = segments_.emplace_back(Segment{std::move(reservation), std::move(mapping), {}});
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

std::vector<size_t> StreamingWindow::PartsInTheWay(int64_t bytes, absl::Span<const Buffer* const> parts) const {
  constexpr size_t kHole = std::numeric_limits<size_t>::max();
  struct Stretch {
    int64_t end_bytes;
    size_t part;
  };
  std::map<const Mapping*, std::map<int64_t, Stretch>> free;  // By segment and offset: what is or would be free.
  for (const Segment& segment : segments_) {
    for (const auto& [offset, hole] : segment.holes) {
      free[segment.mapping.get()][offset] = {offset + hole.bytes, kHole};
    }
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    const int64_t offset = parts[i]->offset_bytes();
    std::map<int64_t, Stretch>& stretches = free[parts[i]->mapping().get()];
    stretches[offset] = {offset + parts[i]->size_bytes(), i};
    std::vector<size_t> in_the_way;
    int64_t begin = 0, end = 0;
    for (const auto& [at, stretch] : stretches) {
      if (at != end) {
        begin = at;
        in_the_way.clear();
      }
      end = stretch.end_bytes;
      if (stretch.part != kHole) in_the_way.push_back(stretch.part);
      if (end - begin >= bytes) return in_the_way;
    }
  }
  return {};
}

std::optional<Buffer> StreamingWindow::RemoveFree() {
  auto smallest = segments_.end();
  for (auto segment = segments_.begin(); segment != segments_.end(); ++segment) {
    if (segment->free.bytes() < segment->mapping->bytes()) continue;
    if (smallest == segments_.end() || segment->mapping->bytes() < smallest->mapping->bytes()) smallest = segment;
  }
  if (smallest == segments_.end()) return std::nullopt;
  Buffer::Events events = EventsOf(smallest->holes.begin(), smallest->holes.end());
  Buffer removed(std::move(smallest->mapping), 0, std::move(smallest->free), std::move(events));
  segments_.erase(smallest);
  return removed;
}

int StreamingWindow::SegmentsOf(int64_t bytes) const {
  return static_cast<int>(std::count_if(segments_.begin(), segments_.end(),
                                        [bytes](const Segment& segment) { return segment.mapping->bytes() >= bytes; }));
}

}  // namespace ditserve
