#include "tests/testing/device_double.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

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
  std::fprintf(stderr, "DeviceDouble: %s\n", what.c_str());
  std::abort();
}

}  // namespace

class DoubleWorld::PointEvent final : public Event {
 public:
  PointEvent(DoubleWorld* world, PointPtr point) : world_(*world), point_(std::move(point)) {}
  bool Done() override { return world_.IsDone(point_); }
  absl::Status Wait() override {
    world_.WaitFor(point_);
    return absl::OkStatus();
  }
  const PointPtr& point() const { return point_; }

 private:
  DoubleWorld& world_;
  const PointPtr point_;
};

DoubleWorld::~DoubleWorld() {
  const absl::MutexLock lock(&mutex_);
  if (!races_.empty()) Abort(absl::StrCat("a race that no test expects: ", races_.front()));
}

void DoubleWorld::HostReads(const void* begin, int64_t bytes, const std::string& place) {
  HostAccess({static_cast<const std::byte*>(begin), bytes, false}, place);
}

void DoubleWorld::HostWrites(const void* begin, int64_t bytes, const std::string& place) {
  HostAccess({static_cast<const std::byte*>(begin), bytes, true}, place);
}

void DoubleWorld::HostAccess(const Access& access, const std::string& place) {
  const absl::MutexLock lock(&mutex_);
  Clock& clock = streams_[kHostStream].clock;
  Tick(clock, kHostStream);
  Check(access, kHostStream, clock, std::make_shared<std::string>(place));
}

bool DoubleWorld::RunSome() {
  const absl::MutexLock running(&running_);
  Operation operation;
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
  }
  if (operation.work) operation.work();
  const absl::MutexLock lock(&mutex_);
  operation.end->done = true;
  return true;
}

std::vector<std::string> DoubleWorld::TakeRaces() {
  const absl::MutexLock lock(&mutex_);
  return std::exchange(races_, {});
}

size_t DoubleWorld::AddStream() {
  const absl::MutexLock lock(&mutex_);
  streams_.emplace_back();
  return streams_.size() - 1;
}

size_t DoubleWorld::PickOf(const std::vector<size_t>& streams) {
  const absl::MutexLock lock(&mutex_);
  return streams[random_() % streams.size()];
}

DoubleWorld::PointPtr DoubleWorld::PointOf(const EventPtr& event) {
  return static_cast<const PointEvent&>(*event).point();
}

EventPtr DoubleWorld::Enqueue(size_t stream_index, const std::string& place, absl::Span<const EventPtr> after,
                              const std::vector<Access>& accesses, absl::AnyInvocable<void()> work) {
  const absl::MutexLock lock(&mutex_);
  Stream& stream = streams_[stream_index];
  Operation operation{std::exchange(stream.after, {}), std::move(work), std::make_shared<Point>()};
  for (const EventPtr& event : after) {
    if (event != nullptr) operation.after.push_back(PointOf(event));
  }
  Clock& host = streams_[kHostStream].clock;
  Join(stream.clock, host);
  for (const PointPtr& point : operation.after) Join(stream.clock, point->clock);
  Tick(stream.clock, stream_index);
  Tick(host, kHostStream);  // What the host does from now on is not before this.
  const auto named = std::make_shared<std::string>(place);
  for (const Access& access : accesses) Check(access, stream_index, stream.clock, named);
  operation.end->clock = stream.clock;
  EventPtr event = std::make_shared<PointEvent>(this, operation.end);
  stream.pending.push_back(std::move(operation));
  return event;
}

void DoubleWorld::OrderStream(size_t stream, const EventPtr& event) {
  const absl::MutexLock lock(&mutex_);
  streams_[stream].after.push_back(PointOf(event));
}

void DoubleWorld::WaitFor(const PointPtr& point) {
  for (;;) {
    {
      const absl::MutexLock lock(&mutex_);
      if (point->done) return Join(streams_[kHostStream].clock, point->clock);
    }
    if (RunSome()) continue;
    const absl::MutexLock lock(&mutex_);
    if (!point->done) Abort("an event is waited for that can never pass");
  }
}

// Whoever asks again and again finds that it passes.
bool DoubleWorld::IsDone(const PointPtr& point) {
  {
    const absl::MutexLock lock(&mutex_);
    if (point->done) {
      Join(streams_[kHostStream].clock, point->clock);
      return true;
    }
  }
  RunSome();
  return false;
}

void DoubleWorld::SplitAt(const std::byte* at) {
  auto cell = cells_.upper_bound(at);
  if (cell == cells_.begin()) return;
  cell = std::prev(cell);
  if (cell->first == at || cell->second.end <= at) return;
  Cell rest = cell->second;
  cell->second.end = at;
  cells_.emplace(at, std::move(rest));
}

void DoubleWorld::MakeCells(const std::byte* begin, const std::byte* end) {
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
}

void DoubleWorld::Check(const Access& access, size_t stream, const Clock& clock, const Place& place) {
  const std::byte* const end = access.begin + access.bytes;
  MakeCells(access.begin, end);
  std::string race;  // The first; others are of the same kind.
  const auto check = [&](const std::vector<Epoch>& epochs, const char* what) {
    for (const Epoch& epoch : epochs) {
      if (!race.empty() || epoch.time <= TimeOf(clock, epoch.stream)) continue;
      race = absl::StrCat(access.writes ? "the write of " : "the read of ", access.bytes, " bytes by ", *place,
                          " is not ordered after the ", what, " by ", *epoch.place);
    }
  };
  const Epoch now = {stream, TimeOf(clock, stream), place};
  for (auto cell = cells_.lower_bound(access.begin); cell != cells_.end() && cell->first < end; ++cell) {
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

DeviceDouble::DeviceDouble(DoubleWorld* world, Memory memory)
    : FakeDevice(/*computes_in_host_memory=*/false, memory),
      world_(*world),
      computing_(world->AddStream()),
      copies_({world->AddStream(), world->AddStream()}) {}

DeviceDouble::~DeviceDouble() {
  while (world_.RunSome()) {
  }
}

void DeviceDouble::Compute(const std::string& name, const std::vector<DoubleRange>& reads,
                           absl::AnyInvocable<void()> work) {
  std::vector<DoubleWorld::Access> accesses;
  for (const auto& [begin, bytes] : reads) accesses.push_back({static_cast<const std::byte*>(begin), bytes, false});
  world_.Enqueue(computing_, name, {}, accesses, std::move(work));
}

absl::StatusOr<EventPtr> DeviceDouble::Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) {
  const ElementSpan source = conversion.source, target = conversion.target;
  const int64_t count = conversion.count;
  const size_t stream = world_.PickOf(copies_);
  if (count == 0) return world_.Enqueue(stream, name() + "'s event", after, {}, nullptr);
  DITSERVE_RETURN_IF_ERROR(CheckLink());
  if (!IsHost(source.memory) || !IsHost(target.memory)) return EnqueueElements(stream, conversion, after);
  DITSERVE_RETURN_IF_ERROR(WaitForAll(after));
  world_.HostReads(source.data, count * SizeOf(source.dtype), "a conversion on the host");
  world_.HostWrites(target.data, count * SizeOf(target.dtype), "a conversion on the host");
  Cast(source.data, source.dtype, conversion.through, target.data, target.dtype, count);
  return nullptr;
}

EventPtr DeviceDouble::EnqueueElements(size_t stream, const Conversion& conversion, absl::Span<const EventPtr> after) {
  const ElementSpan source = conversion.source, target = conversion.target;
  const int64_t count = conversion.count;
  const std::vector<DType> through(conversion.through.begin(), conversion.through.end());
  const int64_t read = count * SizeOf(source.dtype), written = count * SizeOf(target.dtype);
  const std::string place = name() + "'s conversion";
  world_.Enqueue(stream, place, after, {{target.data, written, true}},
                 [target, written] { std::memset(target.data, kPattern, static_cast<size_t>(written)); });
  return world_.Enqueue(
      stream, place, {}, {{source.data, read, false}, {target.data, written, true}},
      [source, through, target, count] { Cast(source.data, source.dtype, through, target.data, target.dtype, count); });
}

absl::Status DeviceDouble::Operate(const Conversion& conversion) {
  DITSERVE_RETURN_IF_ERROR(CheckLink());
  EnqueueElements(computing_, conversion, {});
  return absl::OkStatus();
}

absl::Status DeviceDouble::ComputeAfter(const EventPtr& event) {
  if (event != nullptr) world_.OrderStream(computing_, event);
  return absl::OkStatus();
}

absl::StatusOr<EventPtr> DeviceDouble::RecordOperations() {
  return world_.Enqueue(computing_, name() + "'s event", {}, {}, nullptr);
}

absl::Status DeviceDouble::Commit(Memory memory, std::byte* begin, int64_t bytes) {
  DITSERVE_RETURN_IF_ERROR(FakeDevice::Commit(memory, begin, bytes));
  world_.HostWrites(begin, bytes, "Commit");
  std::memset(begin, kPattern, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

// It stays accessible to work that comes too late, which has been reported then.
void DeviceDouble::Decommit(Memory memory, std::byte* begin, int64_t bytes) {
  world_.HostWrites(begin, bytes, "Decommit");
  std::memset(begin, kPattern, static_cast<size_t>(bytes));
  Mark(memory, begin, bytes, false);
}

// As Decommit, for the same reason, and Commit.
absl::Status DeviceDouble::Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) {
  Decommit(memory, from, bytes);
  return Commit(memory, to, bytes);
}

}  // namespace ditserve
