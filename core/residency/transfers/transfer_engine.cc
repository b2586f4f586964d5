#include "core/residency/transfers/transfer_engine.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/processor_time.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// Large enough for a disk's full speed, small enough that a few fit beside each other in the last-level cache.
constexpr int64_t kSlotBytes = TransferJob::kMostPieceBytes;
constexpr int kNiceness = 10;

size_t SlotCount(size_t devices, int threads) {
  const auto of_lanes = devices * static_cast<size_t>(threads);
  return devices > 1 ? 2 * of_lanes : of_lanes;  // Those that a lane shares with others, too.
}

}  // namespace

int64_t TransferEngine::StagingBytes(size_t devices, int threads) {
  return static_cast<int64_t>(SlotCount(devices, threads)) * kSlotBytes;
}

absl::StatusOr<std::unique_ptr<TransferEngine>> TransferEngine::Make(Arena* host, Ledger* ledger,
                                                                     absl::Span<Device* const> devices, int threads) {
  std::deque<Slot> slots;
  for (size_t i = 0; i < SlotCount(devices.size(), threads); ++i) {
    std::optional<Reservation> reservation = ledger->TryReserve(Memory::kHost, MemoryKind::kStaging, kSlotBytes);
    if (!reservation) {
      return absl::ResourceExhaustedError(absl::StrCat("the host budget is ", ledger->Usage(Memory::kHost).budget_bytes,
                                                       " bytes; ", threads, " transfer threads for each of ",
                                                       devices.size(), " devices take ",
                                                       StagingBytes(devices.size(), threads), " for their slots"));
    }
    Slot& slot = slots.emplace_back();
    slot.reservation = *std::move(reservation);
    slot.buffer = host->Take(kSlotBytes);
    DITSERVE_RETURN_IF_ERROR(slot.buffer.Prepare());
  }
  return std::unique_ptr<TransferEngine>(new TransferEngine(host, std::move(slots), devices, threads));
}

TransferEngine::TransferEngine(Arena* host, std::deque<Slot> slots, absl::Span<Device* const> devices, int threads)
    : host_(host), threads_(threads), slots_(std::move(slots)) {
  for (Slot& slot : slots_) free_.push_back(&slot);
  for (Device* const device : devices) {
    Lane& lane = lanes_[device];
    for (int i = 0; i < threads; ++i) {
      lane.threads.emplace_back([this, &lane] { Run(&lane); });
      pthread_getcpuclockid(lane.threads.back().native_handle(), &lane.clocks.emplace_back());
    }
  }
}

TransferEngine::~TransferEngine() {
  {
    const absl::MutexLock lock(&mutex_);
    for (auto& [device, lane] : lanes_) lane.stopping = true;
  }
  for (auto& [device, lane] : lanes_) {
    for (std::thread& thread : lane.threads) thread.join();
  }
  for (auto& [device, lane] : lanes_) lane.completions.reset();  // Nothing reads the slots any more.
  for (Slot& slot : slots_) slot.buffer = Buffer();
  host_->Trim(StagingBytes(lanes_.size(), threads_)).Free();  // Before the reservations end.
}

void TransferEngine::Submit(Transfer transfer) {
  const auto job = std::make_shared<TransferJob>(std::move(transfer));
  const absl::MutexLock lock(&mutex_);
  Lane& lane = lanes_.at(job->device());
  for (Slot& slot : slots_) {
    if (slot.holds && job->Wants(*slot.holds) && Share(slot, lane, job)) job->Take(slot.holds->piece);
  }
  if (!job->AllTaken()) lane.queue.push_back(job);
}

Transferred TransferEngine::transferred(const Device& device) const {
  const Lane& lane = lanes_.at(&device);
  Transferred of_device;
  {
    const absl::MutexLock lock(&mutex_);
    of_device = lane.done;
  }
  of_device.work = ProcessorTimeOf(lane);
  return of_device;
}

absl::Duration TransferEngine::ProcessorTimeOf(const Lane& lane) {
  absl::Duration taken;
  for (const clockid_t clock : lane.clocks) taken += ProcessorTime(clock);
  return taken;
}

absl::Duration TransferEngine::processor_time() const {
  absl::Duration taken;
  for (const auto& [device, lane] : lanes_) taken += ProcessorTimeOf(lane);
  return taken;
}

TransferWork TransferEngine::work() const {
  const absl::MutexLock lock(&mutex_);
  return work_;
}

void TransferEngine::Run(Lane* lane) {
  // Computing goes first: where it is what takes the time, a product whose threads are interrupted waits for the last
  // of them; where moving is, computing waits and leaves the processor to us. (Linux: of this thread alone. A hint.)
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness);
  while (DoNext(*lane)) {
  }
}

bool TransferEngine::DoNext(Lane& lane) {
  std::optional<Part> read;
  JobPtr job;
  size_t piece = 0;
  {
    const absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&lane, &Lane::HasWorkOrEnds));
    if (!lane.read.empty()) {
      read = std::move(lane.read.front());
      lane.read.pop_front();
    } else if (!lane.queue.empty()) {
      job = lane.queue.front();
      piece = job->TakeNext();
      if (job->AllTaken()) lane.queue.pop_front();
    } else {
      return false;
    }
  }
  read ? MovePart(lane, *read, &Lane::others_slots) : MovePiece(lane, job, piece);
  return true;
}

void TransferEngine::MovePiece(Lane& lane, const JobPtr& job, size_t piece) {
  absl::Status status = job->Prepare();
  if (status.ok() && job->ReadsToSlots()) return ReadPiece(lane, job, piece);
  TransferJob::Moved moved;
  if (status.ok()) status = job->Move(piece, moved);
  Finish(lane, job, piece, status, std::move(moved));
}

void TransferEngine::ReadPiece(Lane& lane, const JobPtr& job, size_t piece) {
  Slot* const slot = BeginReading(lane, job, piece);
  if (slot == nullptr) return;
  std::vector<TransferJob::Work> work;
  const absl::StatusOr<std::byte*> at = job->ReadTo(slot->buffer.data(), piece, work);
  MovePart(lane, EndReading(lane, *slot, at, work), &Lane::own_slots);
}

TransferEngine::Slot* TransferEngine::BeginReading(Lane& lane, const JobPtr& job, size_t piece) {
  const auto has_slot = [&] { return lane.own_slots < threads_; };
  const PieceId id = job->IdOf(piece);
  const absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&has_slot));
  for (Slot& same : slots_) {
    if (same.holds == id && Share(same, lane, job)) return nullptr;
  }
  ++lane.own_slots;
  Slot& slot = *free_.front();
  free_.pop_front();
  slot.holds = id;
  slot.at = nullptr;
  slot.sharers = {{&lane, job}};
  slot.lanes = {&lane};
  slot.holders = 1;
  for (auto& [device, each] : lanes_) {
    Lane& other = each;
    const auto is_over = [&](const JobPtr& waiting) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      if (waiting->Wants(id) && Share(slot, other, waiting)) waiting->Take(piece);
      return waiting->AllTaken();
    };
    other.queue.erase(std::remove_if(other.queue.begin(), other.queue.end(), is_over), other.queue.end());
  }
  return &slot;
}

bool TransferEngine::Share(Slot& slot, Lane& lane, const JobPtr& job) {
  const bool was_read = slot.at != nullptr;
  if (std::find(slot.lanes.begin(), slot.lanes.end(), &lane) != slot.lanes.end()) {
    if (!was_read) slot.sharers.push_back({&lane, job});
    return !was_read;
  }
  if (lane.others_slots == threads_) return false;
  ++lane.others_slots;
  slot.lanes.push_back(&lane);
  if (slot.holders++ == 0) free_.erase(std::find(free_.begin(), free_.end(), &slot));
  if (was_read) {
    lane.read.push_back({&slot, slot.holds->piece, slot.at, {{&lane, job}}});
  } else {
    slot.sharers.push_back({&lane, job});
    ++lane.awaited;
  }
  return true;
}

TransferEngine::Part TransferEngine::EndReading(Lane& lane, Slot& slot, const absl::StatusOr<std::byte*>& at,
                                                const std::vector<TransferJob::Work>& work) {
  const absl::MutexLock lock(&mutex_);
  Count(work);
  std::map<Lane*, Part> parts;
  int64_t unpaid = slot.sharers.front().job->BytesOf(slot.holds->piece);
  for (size_t left = slot.sharers.size(); left > 0; --left) {
    Sharer& sharer = slot.sharers[left - 1];
    sharer.read_bytes = unpaid / static_cast<int64_t>(left);
    unpaid -= sharer.read_bytes;
    Part& part = parts.try_emplace(sharer.lane, Part{&slot, slot.holds->piece, at, {}}).first->second;
    part.sharers.push_back(std::move(sharer));
  }
  slot.sharers.clear();
  if (at.ok()) slot.at = *at;
  if (!at.ok()) slot.holds.reset();
  for (auto& [of, part] : parts) {
    if (of == &lane) continue;
    --of->awaited;
    of->read.push_back(std::move(part));
  }
  return std::move(parts.at(&lane));
}

void TransferEngine::MovePart(Lane& lane, const Part& part, int Lane::*slots) {
  Events readers;
  std::vector<absl::Status> statuses;
  std::vector<TransferJob::Moved> moved(part.sharers.size());
  for (size_t i = 0; i < part.sharers.size(); ++i) {
    const Sharer& sharer = part.sharers[i];
    absl::Status status = sharer.job->Prepare();  // Without it an error of the disk would be taken for one of memory.
    status.Update(part.at.status());
    moved[i].cost.disk_read_bytes = sharer.read_bytes;
    if (status.ok()) status = sharer.job->MoveRead(part.piece, *part.at, readers, moved[i]);
    statuses.push_back(std::move(status));
  }
  if (readers.empty()) {
    GiveBack(lane, slots, *part.slot);
  } else {
    // An error is told once, maybe here.
    lane.completions->When(std::move(readers), [this, &lane, slots, part](const absl::Status& passed) {
      for (const Sharer& sharer : part.sharers) sharer.job->Failed(passed);
      GiveBack(lane, slots, *part.slot);
    });
  }
  for (size_t i = 0; i < part.sharers.size(); ++i) {
    Finish(lane, part.sharers[i].job, part.piece, statuses[i], std::move(moved[i]));
  }
}

void TransferEngine::GiveBack(Lane& lane, int Lane::*slots, Slot& slot) {
  const absl::MutexLock lock(&mutex_);
  --(lane.*slots);
  if (--slot.holders == 0) free_.push_back(&slot);
}

void TransferEngine::Count(const std::vector<TransferJob::Work>& work) {
  for (const TransferJob::Work& each : work) work_.Add(each.step, each.took);
}

void TransferEngine::Finish(Lane& lane, const JobPtr& job, size_t piece, const absl::Status& status,
                            TransferJob::Moved moved) {
  {
    const absl::MutexLock lock(&mutex_);
    job->Count(piece, lane.done);  // Before anybody is told.
    Count(moved.work);
  }
  if (!job->Finish(status, std::move(moved))) return;
  if (job->enqueued().empty()) return job->Complete(absl::OkStatus());
  lane.completions->When(job->enqueued(), [job](const absl::Status& passed) { job->Complete(passed); });
}

}  // namespace ditserve
