#include "core/memory/arena.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

constexpr int64_t kNoAddresses = -1;

// Of ranges, what consists of whole pages of Arena::kHugePageBytes, and the rest.
struct ByHugePages {
  std::vector<ArenaRange> whole, rest;
};

ByHugePages SplitByHugePages(const std::vector<ArenaRange>& ranges) {
  constexpr int64_t kPage = Arena::kHugePageBytes;
  ByHugePages split;
  for (const auto& [offset, size] : ranges) {
    const int64_t end = offset + size;
    const int64_t first = (offset + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
    if (first >= last) {
      split.rest.push_back({offset, size});
      continue;
    }
    split.whole.push_back({first, last - first});
    if (first > offset) split.rest.push_back({offset, first - offset});
    if (end > last) split.rest.push_back({last, end - last});
  }
  return split;
}

int64_t SizeOf(const std::vector<ArenaRange>& ranges) {
  return std::accumulate(ranges.begin(), ranges.end(), int64_t{0},
                         [](int64_t sum, const ArenaRange& range) { return sum + range.size_bytes; });
}

}  // namespace

int64_t Garbage::size_bytes() const { return SizeOf(ranges_); }

void Garbage::Free() {
  if (arena_ == nullptr) return;
  // If waiting fails the device is lost and nothing reads the memory any more.
  static_cast<void>(WaitForAll(in_use_until_));
  arena_->Decommit(ranges_);
  {
    const absl::MutexLock lock(&arena_->mutex_);
    arena_->used_bytes_ -= size_bytes();
  }
  arena_ = nullptr;
  ranges_.clear();
  in_use_until_.clear();
}

void Garbage::Swap(Garbage& other) {
  std::swap(arena_, other.arena_);
  std::swap(ranges_, other.ranges_);
  std::swap(in_use_until_, other.in_use_until_);
}

absl::StatusOr<std::unique_ptr<Arena>> Arena::Make(Device* device, Memory memory, int64_t address_bytes) {
  const int64_t granule = device->granule_bytes(memory);
  const int64_t bytes = std::max(address_bytes / granule, int64_t{1}) * granule;
  DITSERVE_ASSIGN_OR_RETURN(std::byte* const begin, device->ReserveAddresses(memory, bytes));
  return std::unique_ptr<Arena>(new Arena(device, memory, bytes, begin));
}

Arena::Arena(Device* device, Memory memory, int64_t address_bytes, std::byte* begin)
    : device_(device),
      memory_(memory),
      address_bytes_(address_bytes),
      granule_bytes_(device->granule_bytes(memory)),
      begin_(begin),
      fresh_({{0, address_bytes}}) {}

Arena::~Arena() {
  Trim(address_bytes_).Free();
  assert(committed_bytes() == 0);
  device_->ReleaseAddresses(memory_, begin_, address_bytes_);
}

Buffer Arena::Take(int64_t bytes, int64_t most_reused_bytes) {
  bytes = RoundUp(bytes);
  const int64_t reused_bytes = std::min(bytes, most_reused_bytes);
  if (bytes == 0) return Buffer(this, {0, 0}, /*has_memory=*/true, {});
  const absl::MutexLock lock(&mutex_);
  used_bytes_ += bytes;
  if (const auto run = reused_bytes == bytes ? FindRun(bytes) : holes_.end(); run != holes_.end()) {
    Events events;
    const int64_t offset = run->first;
    TakeRun(run, bytes, events);
    return Buffer(this, {offset, bytes}, /*has_memory=*/true, std::move(events));
  }
  Buffer part(this, {TakeAddresses(bytes).value_or(kNoAddresses), bytes}, /*has_memory=*/false, {});
  if (part.range_.offset_bytes != kNoAddresses) {
    part.displaced_ = TakeSmallest(reused_bytes, part.displaced_in_use_until_);
  }
  return part;
}

Garbage Arena::Trim(int64_t bytes) {
  Garbage garbage;
  garbage.arena_ = this;
  const absl::MutexLock lock(&mutex_);
  garbage.ranges_ = TakeSmallest(RoundUp(bytes), garbage.in_use_until_);
  used_bytes_ += SizeOf(garbage.ranges_);
  return garbage;
}

int64_t Arena::cached_bytes() const {
  const absl::MutexLock lock(&mutex_);
  return cached_bytes_;
}

int64_t Arena::committed_bytes() const {
  const absl::MutexLock lock(&mutex_);
  return used_bytes_ + cached_bytes_;
}

void Arena::Put(Buffer& part) {
  if (part.range_.size_bytes == 0) return;
  Events events = std::move(part.in_use_until_);
  if (part.ready_ != nullptr) events.push_back(std::move(part.ready_));
  const absl::MutexLock lock(&mutex_);
  used_bytes_ -= part.range_.size_bytes;
  if (part.has_memory_) return AddHole(part.range_, events);
  for (const ArenaRange& range : part.displaced_) AddHole(range, part.displaced_in_use_until_);
  if (part.range_.offset_bytes != kNoAddresses) PutAddressesLocked(part.range_);
}

absl::Status Arena::Commit(Buffer& part) {
  if (part.range_.offset_bytes == kNoAddresses) {
    return absl::ResourceExhaustedError(absl::StrCat(part.range_.size_bytes, " bytes find no addresses beside each ",
                                                     "other among the ", address_bytes_, " of their memory"));
  }
  DITSERVE_RETURN_IF_ERROR(WaitForAll(part.displaced_in_use_until_));
  part.displaced_in_use_until_.clear();
  const std::vector<ArenaRange> displaced = std::exchange(part.displaced_, {});
  // Huge pages stay whole if they come to lie where one begins. What lies between them would be small pages wherever it
  // is: a large part has as much fresh memory instead.
  const auto [whole, rest] = SplitByHugePages(displaced);
  const bool renews = part.range_.size_bytes >= kHugePageBytes;
  absl::Status status;
  int64_t given = 0;
  const auto move = [&](const ArenaRange& range) {
    std::byte* const hole = begin_ + range.offset_bytes;
    if (!status.ok()) return device_->Decommit(memory_, hole, range.size_bytes);
    status = device_->Move(memory_, hole, part.data() + given, range.size_bytes);
    if (status.ok()) given += range.size_bytes;
  };
  for (const ArenaRange& range : whole) move(range);
  for (const ArenaRange& range : rest) {
    if (renews) device_->Decommit(memory_, begin_ + range.offset_bytes, range.size_bytes);
  }
  const int64_t fresh = part.range_.size_bytes - SizeOf(whole) - (renews ? 0 : SizeOf(rest));
  if (status.ok() && fresh > 0) {
    status = device_->Commit(memory_, part.data() + given, fresh);
    if (status.ok()) given += fresh;
  }
  for (const ArenaRange& range : rest) {
    if (!renews) move(range);
  }
  PutAddresses(displaced);
  if (!status.ok() && given > 0) device_->Decommit(memory_, part.data(), given);
  part.has_memory_ = status.ok();
  return status;
}

void Arena::Decommit(const std::vector<ArenaRange>& ranges) {
  for (const ArenaRange& range : ranges) device_->Decommit(memory_, begin_ + range.offset_bytes, range.size_bytes);
  PutAddresses(ranges);
}

Arena::Holes::iterator Arena::FindRun(int64_t bytes) {
  auto best = holes_.end();
  int64_t best_bytes = 0;
  for (auto first = holes_.begin(); first != holes_.end();) {
    auto next = first;
    int64_t end = first->first;
    for (; next != holes_.end() && next->first == end; ++next) end += next->second.size_bytes;
    const int64_t size = end - first->first;
    if (size >= bytes && (best == holes_.end() || size < best_bytes)) {
      best = first;
      best_bytes = size;
    }
    first = next;
  }
  return best;
}

void Arena::TakeRun(Holes::iterator first, int64_t bytes, Events& events) {
  cached_bytes_ -= bytes;
  while (bytes > 0) {
    const auto [offset, hole] = *first;
    events.insert(events.end(), hole.in_use_until.begin(), hole.in_use_until.end());
    first = holes_.erase(first);
    if (hole.size_bytes > bytes) holes_[offset + bytes] = {hole.size_bytes - bytes, hole.in_use_until};
    bytes -= std::min(bytes, hole.size_bytes);
  }
}

std::vector<ArenaRange> Arena::TakeSmallest(int64_t bytes, Events& events) {
  std::vector<ArenaRange> ranges;
  for (const auto& [offset, hole] : holes_) ranges.push_back({offset, hole.size_bytes});
  std::stable_sort(ranges.begin(), ranges.end(),
                   [](const ArenaRange& a, const ArenaRange& b) { return a.size_bytes < b.size_bytes; });
  size_t taken = 0;
  for (; taken < ranges.size() && bytes > 0; ++taken) {
    ArenaRange& range = ranges[taken];
    range.size_bytes = std::min(range.size_bytes, bytes);
    bytes -= range.size_bytes;
    TakeRun(holes_.find(range.offset_bytes), range.size_bytes, events);
  }
  ranges.resize(taken);
  return ranges;
}

void Arena::AddHole(ArenaRange range, const Events& in_use_until) {
  cached_bytes_ += range.size_bytes;
  auto next = holes_.lower_bound(range.offset_bytes);
  if (next != holes_.begin()) {
    const auto before = std::prev(next);
    const Hole& hole = before->second;
    if (before->first + hole.size_bytes == range.offset_bytes && hole.in_use_until == in_use_until) {
      range = {before->first, hole.size_bytes + range.size_bytes};
      holes_.erase(before);
    }
  }
  if (next != holes_.end() && next->first == range.offset_bytes + range.size_bytes &&
      next->second.in_use_until == in_use_until) {
    range.size_bytes += next->second.size_bytes;
    holes_.erase(next);
  }
  holes_[range.offset_bytes] = {range.size_bytes, in_use_until};
}

// The lowest that are enough: so what lies far up stays in one piece.
std::optional<int64_t> Arena::TakeAddresses(int64_t bytes) {
  const int64_t unit = bytes >= kHugePageBytes ? kHugePageBytes : granule_bytes_;
  for (auto each = fresh_.begin(); each != fresh_.end(); ++each) {
    const auto [first, size] = *each;
    const int64_t begin = (first + unit - 1) / unit * unit, end = begin + bytes;
    if (end > first + size) continue;
    fresh_.erase(each);
    if (begin > first) fresh_[first] = begin - first;
    if (end < first + size) fresh_[end] = first + size - end;
    return begin;
  }
  return std::nullopt;
}

void Arena::PutAddresses(const std::vector<ArenaRange>& ranges) {
  const absl::MutexLock lock(&mutex_);
  for (const ArenaRange& range : ranges) PutAddressesLocked(range);
}

void Arena::PutAddressesLocked(ArenaRange range) {
  auto next = fresh_.lower_bound(range.offset_bytes);
  if (next != fresh_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == range.offset_bytes) {
      range = {before->first, before->second + range.size_bytes};
      fresh_.erase(before);
    }
  }
  if (next != fresh_.end() && next->first == range.offset_bytes + range.size_bytes) {
    range.size_bytes += next->second;
    fresh_.erase(next);
  }
  fresh_[range.offset_bytes] = range.size_bytes;
}

}  // namespace ditserve
