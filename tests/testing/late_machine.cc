#include "tests/testing/late_machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ditserve {
namespace {

constexpr size_t kHostStream = 0;

void Join(std::vector<int64_t>& clock, const std::vector<int64_t>& other) {
  clock.resize(std::max(clock.size(), other.size()));
  for (size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

int64_t TimeOf(const std::vector<int64_t>& clock, size_t stream) { return stream < clock.size() ? clock[stream] : 0; }

int64_t Tick(std::vector<int64_t>& clock, size_t stream) {
  clock.resize(std::max(clock.size(), stream + 1));
  return ++clock[stream];
}

[[noreturn]] void Abort(const std::string& what) {
  std::fprintf(stderr, "LateMachine: %s\n", what.c_str());
  std::abort();
}

}  // namespace

class LateMachine::Point {
 public:
  Clock clock;
  absl::Duration time;
  std::optional<size_t> number;  // Of all timed operations.
  bool done = false;
};

LateMachine::~LateMachine() {
  const absl::MutexLock lock(&mutex_);
  if (!races_.empty()) Abort(absl::StrCat("a race that no test expects: ", races_.front()));
}

void LateMachine::Begin(uint32_t seed) {
  while (RunSome()) {
  }
  const absl::MutexLock lock(&mutex_);
  if (!races_.empty()) Abort(absl::StrCat("a race that no test expects: ", races_.front()));
  Clock& host = streams_[kHostStream].clock;  // All that was done is before what will be.
  for (const Stream& stream : streams_) {
    Join(host, stream.clock);
    if (stream.last != nullptr) StreamTask::Acquire(stream.last.get());
  }
  cells_.clear();
  unused_.insert(unused_.end(), removed_.begin(), removed_.end());
  removed_.clear();
  random_.seed(seed);
  durations_ = nullptr;
  host_time_ = absl::ZeroDuration();
  timed_before_ += timed_.size();
  timed_.clear();
  for (Stream& stream : streams_) stream.time = absl::ZeroDuration();
}

size_t LateMachine::AddStream() {
  const absl::MutexLock lock(&mutex_);
  if (unused_.empty()) {
    streams_.emplace_back();
    return streams_.size() - 1;
  }
  const size_t stream = unused_.back();
  unused_.pop_back();
  return stream;
}

void LateMachine::RemoveStream(size_t stream) {
  const absl::MutexLock lock(&mutex_);
  removed_.push_back(stream);
}

LateMachine::PointPtr LateMachine::Enqueue(size_t stream_index, const std::string& place,
                                           absl::Span<const PointPtr> after, const std::vector<Access>& accesses,
                                           Work work) {
  const absl::MutexLock lock(&mutex_);
  Stream& stream = streams_[stream_index];
  const auto named = std::make_shared<std::string>(place);
  Operation operation{std::exchange(stream.after, {}), std::make_shared<Point>(), {}, named};
  for (const PointPtr& point : after) {
    if (point != nullptr) operation.after.push_back(point);
  }
  Clock& host = streams_[kHostStream].clock;
  Join(stream.clock, host);
  for (const PointPtr& point : operation.after) Join(stream.clock, point->clock);
  Tick(stream.clock, stream_index);
  Tick(host, kHostStream);  // What the host does from now on is not before this.
  for (const Access& access : accesses) Check(access, stream_index, stream.clock, named);
  PointPtr end = stream.last = operation.end;
  end->clock = stream.clock;
  stream.time = std::max(stream.time, host_time_);
  for (const PointPtr& point : operation.after) stream.time = std::max(stream.time, point->time);
  if (durations_) {
    Timed timed = {stream_index, place, {}, durations_(place)};
    for (const PointPtr& point : operation.after) {
      if (point->number >= timed_before_) timed.after.push_back(*point->number - timed_before_);
    }
    stream.time += timed.duration;
    end->number = timed_before_ + timed_.size();
    timed_.push_back(std::move(timed));
  }
  end->time = stream.time;
  std::vector<const void*> points;
  for (const PointPtr& point : operation.after) points.push_back(point.get());
  operation.task = StreamTask(std::move(work), std::move(points), end.get());
  stream.pending.push_back(std::move(operation));
  return end;
}

void LateMachine::OrderStream(size_t stream, const PointPtr& point) {
  const absl::MutexLock lock(&mutex_);
  streams_[stream].after.push_back(point);
}

bool LateMachine::RunSome() {
  const absl::MutexLock running(&running_);
  Operation operation;
  StreamFiber* fiber = nullptr;
  {
    const absl::MutexLock lock(&mutex_);
    std::vector<Stream*> ready;
    for (Stream& stream : streams_) {
      if (stream.pending.empty()) continue;
      const std::vector<PointPtr>& after = stream.pending.front().after;
      if (std::all_of(after.begin(), after.end(), [](const PointPtr& point) { return point->done; })) {
        ready.push_back(&stream);
      }
    }
    if (ready.empty()) return false;
    Stream& chosen = *ready[random_() % ready.size()];
    operation = std::move(chosen.pending.front());
    chosen.pending.pop_front();
    fiber = &chosen.fiber;
  }
  fiber->Run(std::move(operation.task));
  const absl::MutexLock lock(&mutex_);
  operation.end->done = true;
  return true;
}

void LateMachine::WaitFor(const PointPtr& point) {
  for (;;) {
    {
      const absl::MutexLock lock(&mutex_);
      if (point->done) {
        StreamTask::Acquire(point.get());
        return Join(streams_[kHostStream].clock, point->clock);
      }
    }
    if (RunSome()) continue;
    const absl::MutexLock lock(&mutex_);
    if (!point->done) Abort("a point is waited for that can never pass");
  }
}

bool LateMachine::IsDone(const PointPtr& point) {
  {
    const absl::MutexLock lock(&mutex_);
    if (point->done) {
      StreamTask::Acquire(point.get());
      Join(streams_[kHostStream].clock, point->clock);
      return true;
    }
  }
  RunSome();
  return false;
}

void LateMachine::HostReads(const void* begin, int64_t bytes, const std::string& place) {
  const absl::MutexLock lock(&mutex_);
  HostAccess({begin, bytes, false}, place);
}

void LateMachine::HostWrites(const void* begin, int64_t bytes, const std::string& place) {
  const absl::MutexLock lock(&mutex_);
  HostAccess({begin, bytes, true}, place);
}

// Whatever is enqueued later is after the host anyway: what the host has taken needs no cell.
bool LateMachine::HostTakes(const void* begin, int64_t bytes, const std::string& place) {
  const absl::MutexLock lock(&mutex_);
  const std::byte* const first = static_cast<const std::byte*>(begin);
  const auto next = cells_.lower_bound(first);
  const bool touched = (next != cells_.end() && next->first < first + bytes) ||
                       (next != cells_.begin() && std::prev(next)->second.end > first);
  if (!touched) return true;
  const size_t races = races_.size();
  HostAccess({begin, bytes, true}, place);
  cells_.erase(cells_.lower_bound(first), cells_.lower_bound(first + bytes));
  return races_.size() == races;
}

void LateMachine::HostAccess(const Access& access, const std::string& place) {
  Clock& clock = streams_[kHostStream].clock;
  Tick(clock, kHostStream);
  Check(access, kHostStream, clock, std::make_shared<std::string>(place));
}

void LateMachine::SetDurations(std::function<absl::Duration(const std::string& place)> durations) {
  const absl::MutexLock lock(&mutex_);
  durations_ = std::move(durations);
}

void LateMachine::KeepHostBusy(absl::Duration time) {
  const absl::MutexLock lock(&mutex_);
  host_time_ += time;
}

absl::Duration LateMachine::PassesAt(const PointPtr& point) {
  const absl::MutexLock lock(&mutex_);
  return point->time;
}

absl::Duration LateMachine::EndsAt() {
  const absl::MutexLock lock(&mutex_);
  absl::Duration end;
  for (const Stream& stream : streams_) end = std::max(end, stream.time);
  return end;
}

std::vector<LateMachine::Timed> LateMachine::TimedOperations() {
  const absl::MutexLock lock(&mutex_);
  return timed_;
}

int64_t LateMachine::Pending(const std::string& place) {
  const absl::MutexLock lock(&mutex_);
  int64_t pending = 0;
  for (const Stream& stream : streams_) {
    pending += std::count_if(stream.pending.begin(), stream.pending.end(),
                             [&](const Operation& operation) { return *operation.place == place; });
  }
  return pending;
}

size_t LateMachine::Pick(size_t below) {
  const absl::MutexLock lock(&mutex_);
  return random_() % below;
}

void LateMachine::Report(std::string what) {
  const absl::MutexLock lock(&mutex_);
  races_.push_back(std::move(what));
}

std::vector<std::string> LateMachine::TakeRaces() {
  const absl::MutexLock lock(&mutex_);
  return std::exchange(races_, {});
}

void LateMachine::SplitAt(const std::byte* at) {
  auto cell = cells_.upper_bound(at);
  if (cell == cells_.begin()) return;
  cell = std::prev(cell);
  if (cell->first == at || cell->second.end <= at) return;
  Cell rest = cell->second;
  cell->second.end = at;
  cells_.emplace(at, std::move(rest));
}

LateMachine::Cells::iterator LateMachine::MakeCells(const std::byte* begin, const std::byte* end) {
  SplitAt(begin);
  SplitAt(end);
  for (const std::byte* at = begin; at < end;) {
    const auto cell = cells_.lower_bound(at);
    if (cell != cells_.end() && cell->first == at) {
      at = cell->second.end;
      continue;
    }
    const std::byte* const next = cell == cells_.end() ? end : std::min(cell->first, end);
    cells_.emplace(at, Cell{next, {}, {}});
    at = next;
  }
  return cells_.lower_bound(begin);
}

void LateMachine::Check(const Access& access, size_t stream, const Clock& clock, const Place& place) {
  const std::byte* const begin = static_cast<const std::byte*>(access.begin);
  const std::byte* const end = begin + access.bytes;
  std::string race;  // The first; others are of the same kind.
  const auto check = [&](const std::vector<Epoch>& epochs, const char* what) {
    for (const Epoch& epoch : epochs) {
      if (!race.empty() || epoch.time <= TimeOf(clock, epoch.stream)) continue;
      race = absl::StrCat(access.writes ? "the write of " : "the read of ", access.bytes, " bytes by ", *place,
                          " is not ordered after the ", what, " by ", *epoch.place);
    }
  };
  const Epoch now = {stream, TimeOf(clock, stream), place};
  for (auto cell = MakeCells(begin, end); cell != cells_.end() && cell->first < end; ++cell) {
    check(cell->second.writes, "write");
    std::vector<Epoch>& reads = cell->second.reads;
    if (access.writes) {
      check(reads, "read");
      cell->second.writes = {now};
      reads.clear();
    } else {
      std::erase_if(reads, [&](const Epoch& epoch) { return epoch.stream == stream; });
      reads.push_back(now);
    }
  }
  if (!race.empty()) races_.push_back(std::move(race));
}

}  // namespace ditserve
