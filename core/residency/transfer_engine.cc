#include "core/residency/transfer_engine.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/processor_time.h"
#include "core/base/profiler_range.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// Large enough for a disk's full speed, small enough that a few fit beside each other in the last-level cache.
constexpr int64_t kPieceBytes = 4 << 20;
constexpr int64_t kPageBytes = Checkpoint::kReadAlignment;
constexpr int kNiceness = 10;

int64_t PageOf(int64_t bytes) { return bytes / kPageBytes * kPageBytes; }

}  // namespace

// A transfer cut into pieces that threads take one by one.
class TransferEngine::Job {
 public:
  explicit Job(Transfer transfer);

  // --- callers serialize
  // The next piece that nobody has taken, and who shares it. Each is taken once.
  size_t TakePiece(std::vector<std::shared_ptr<Job>>& sharers) {
    sharers.insert(sharers.end(), followers_.begin(), followers_.end());
    return taken_++;
  }
  bool AllTaken() const { return taken_ == own_pieces_; }
  // Whether both read the same, through a slot, and this has yet to read some of it.
  bool CanLead(const Job& other) const;
  // What `leader` has not taken yet it takes for this one too.
  static void Follow(Job& leader, const std::shared_ptr<Job>& follower) {
    leader.followers_.push_back(follower);
    follower->own_pieces_ = leader.taken_;
  }

  const Device* device() const { return transfer_.device; }
  bool ReadsCheckpoint() const { return !transfer_.source; }
  // Counts what the piece moves.
  void Count(size_t piece, Transferred& done) const;

  // Does one piece of all `jobs`, whose first one reads it, and returns those that it ended: Complete is to be called
  // once what they enqueued has passed.
  static std::vector<std::shared_ptr<Job>> Do(TransferEngine& engine, const std::vector<std::shared_ptr<Job>>& jobs,
                                              size_t piece, Slot& slot);

  // What was enqueued, once the job has ended.
  const Events& enqueued() const { return ready_; }
  // Calls `done`.
  void Complete(const absl::Status& passed);

 private:
  // Elements of one parameter.
  struct Segment {
    int parameter;
    int64_t begin;
    int64_t count;
  };
  // What is read in one go: neighbours in a shard, or a part of a source's parameter.
  struct Piece {
    std::vector<Segment> segments;
    int64_t bytes = 0;  // As they are read.
  };
  // What became of a piece.
  struct Moved {
    TransferCost cost;
    std::vector<Events> written;  // By target: conversions that write it.
    std::vector<Work> work;
  };
  enum class Stage : uint8_t { kNew, kPreparing, kPrepared };

  void CutSource();
  void CutRun(const ModelWeights::Run& run);
  // The elements of a segment in a copy.
  static ElementSpan SpanIn(const Buffer& buffer, const CopyLayout& layout, const CopyForm& form,
                            const Segment& segment);
  ElementSpan SpanIn(size_t target, const Segment& segment) const;
  // Of a target's fresh memory, the share of so many bytes that are read.
  int64_t FreshBytes(size_t target, int64_t read_bytes) const {
    return transfer_.targets[target].fresh_bytes * read_bytes / bytes_;
  }
  absl::Status PrepareTargets();
  // Targets are prepared by the first thread that comes, so that no lock is held meanwhile; the others wait for it.
  absl::Status Begin() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status MoveFromSource(const Piece& piece, Moved& moved);
  // Reads the piece, once nobody reads the slot any more, and sets `at` to where its first byte then is: in the slot,
  // or in the first target.
  absl::Status Read(const Piece& piece, Slot& slot, std::byte** at, Moved& moved);
  absl::Status MoveRead(const Piece& piece, std::byte* at, Slot& slot, Moved& moved);
  // Takes the segment through the targets that `from` is not in yet, and appends to `readers` what reads `from`.
  absl::Status Convert(const Segment& segment, ElementSpan from, EventPtr written, Events& readers, Moved& moved);
  bool Finish(const absl::Status& status, Moved moved) ABSL_LOCKS_EXCLUDED(mutex_);
  // Sets the target's event, of all that writes it, or reads it to write the next; each of that is behind who still
  // read it.
  absl::Status SetReady(const Transfer::Target& target, const Events& uses);

  bool IsPrepared() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stage_ == Stage::kPrepared; }

  Transfer transfer_;
  std::optional<CopyLayout> source_layout_;
  std::vector<CopyLayout> layouts_;  // Of the targets.
  TransferPath path_;
  std::vector<Piece> pieces_;
  int64_t bytes_ = 0;    // Of all pieces.
  ProfilerRange range_;  // From when its targets are prepared until they are written.
  // Under the engine's mutex.
  size_t taken_ = 0;
  size_t own_pieces_ = 0;                        // Those that it takes itself, the first.
  std::vector<std::shared_ptr<Job>> followers_;  // For whom its pieces are read too.
  Events ready_;                                 // Of the targets. Set by whoever does the last piece.
  absl::Status result_;                          // Likewise.

  absl::Mutex mutex_;
  Stage stage_ ABSL_GUARDED_BY(mutex_) = Stage::kNew;
  size_t finished_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // The first error.
  Moved moved_ ABSL_GUARDED_BY(mutex_);          // Of all pieces.
};

TransferEngine::Job::Job(Transfer transfer) : transfer_(std::move(transfer)) {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  const auto layout = [&](const Buffer& buffer, const CopyForm& form) {
    assert(std::none_of(form.encodings.begin(), form.encodings.end(),
                        [](const Encoding& encoding) { return encoding.scales.has_value(); }));
    return LayoutOf(module, form, transfer_.device->IsInHostMemory(buffer.memory()));
  };
  std::vector<const CopyForm*> forms;
  for (const Transfer::Target& target : transfer_.targets) {
    layouts_.push_back(layout(*target.buffer, *target.form));
    forms.push_back(target.form);
  }
  path_ = PathOf(module, transfer_.source ? transfer_.source->form : nullptr, forms, layouts_.front().as_stored);
  if (transfer_.source) {
    source_layout_ = layout(*transfer_.source->buffer, *transfer_.source->form);
    CutSource();
  } else {
    for (const ModelWeights::Run& run : module.runs) CutRun(run);
  }
  if (pieces_.empty()) pieces_.emplace_back();  // A module without elements is moved by preparing its targets.
  own_pieces_ = pieces_.size();
  for (const Piece& piece : pieces_) bytes_ += piece.bytes;
}

void TransferEngine::Job::Count(size_t piece, Transferred& done) const {
  (ReadsCheckpoint() ? done.checkpoint_bytes : done.copy_bytes) += pieces_[piece].bytes;
}

bool TransferEngine::Job::CanLead(const Job& other) const {
  const auto through_slot = [](const Job& job) { return job.ReadsCheckpoint() && !job.path_.read_in_place; };
  return through_slot(*this) && through_slot(other) && transfer_.model == other.transfer_.model &&
         transfer_.module == other.transfer_.module && own_pieces_ == pieces_.size() && !AllTaken();
}

void TransferEngine::Job::CutSource() {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  for (size_t i = 0; i < module.stored.size(); ++i) {
    const int64_t size = SizeOf(transfer_.source->form->encodings[i].dtype);
    const int64_t step = kPieceBytes / size;
    const int64_t elements = ElementCount(module.stored[i]->shape);
    for (int64_t begin = 0; begin < elements; begin += step) {
      const int64_t count = std::min(step, elements - begin);
      pieces_.push_back({{{static_cast<int>(i), begin, count}}, count * size});
    }
  }
}

// A piece ends at a page, so that the next begins with one; but where elements do not begin at multiples of their size,
// with the last element that is whole.
void TransferEngine::Job::CutRun(const ModelWeights::Run& run) {
  const ModelWeights::Module& module = transfer_.model->module(transfer_.module);
  int64_t end = 0;  // Of the piece that is being filled, in the shard.
  for (const int parameter : run.parameters) {
    const StoredTensor& stored = *module.stored[parameter];
    const int64_t size = SizeOf(stored.dtype), elements = stored.size_bytes / size;
    for (int64_t begin = 0; begin < elements;) {
      const int64_t at = stored.offset_bytes + begin * size;
      if (at + size > end) {
        end = PageOf(at) + kPieceBytes;
        pieces_.emplace_back();
      }
      const int64_t count = std::min(elements - begin, (end - at) / size);
      pieces_.back().segments.push_back({parameter, begin, count});
      pieces_.back().bytes += count * size;
      begin += count;
    }
  }
}

ElementSpan TransferEngine::Job::SpanIn(const Buffer& buffer, const CopyLayout& layout, const CopyForm& form,
                                        const Segment& segment) {
  const DType dtype = form.encodings[segment.parameter].dtype;
  std::byte* const data = buffer.data() + layout.places[segment.parameter].offset_bytes + segment.begin * SizeOf(dtype);
  return {buffer.memory(), data, dtype};
}

ElementSpan TransferEngine::Job::SpanIn(size_t target, const Segment& segment) const {
  return SpanIn(*transfer_.targets[target].buffer, layouts_[target], *transfer_.targets[target].form, segment);
}

absl::Status TransferEngine::Job::PrepareTargets() {
  for (const Transfer::Target& target : transfer_.targets) DITSERVE_RETURN_IF_ERROR(target.buffer->Prepare());
  return absl::OkStatus();
}

absl::Status TransferEngine::Job::Begin() {
  {
    const absl::MutexLock lock(&mutex_);
    if (stage_ != Stage::kNew) {
      mutex_.Await(absl::Condition(this, &Job::IsPrepared));
      return status_;
    }
    stage_ = Stage::kPreparing;
  }
  range_ = ProfilerRange(ProfilerRange::kCopy, transfer_.model->module(transfer_.module).spec.path);
  absl::Status prepared = PrepareTargets();
  const absl::MutexLock lock(&mutex_);
  stage_ = Stage::kPrepared;
  status_.Update(prepared);
  return status_;
}

std::vector<std::shared_ptr<TransferEngine::Job>> TransferEngine::Job::Do(TransferEngine& engine,
                                                                          const std::vector<std::shared_ptr<Job>>& jobs,
                                                                          size_t piece, Slot& slot) {
  struct Part {
    absl::Status status;
    Moved moved;
  };
  std::vector<Part> parts;
  for (const std::shared_ptr<Job>& job : jobs) {
    parts.push_back({job->Begin()});
    parts.back().moved.written.resize(job->transfer_.targets.size());
  }
  Job& first = *jobs.front();
  const Piece& what = first.pieces_[piece];
  const auto sharers = std::count_if(parts.begin(), parts.end(), [](const Part& part) { return part.status.ok(); });
  if (!first.ReadsCheckpoint()) {
    if (sharers > 0) parts.front().status = first.MoveFromSource(what, parts.front().moved);
  } else if (sharers > 0 && !what.segments.empty()) {
    std::byte* at = nullptr;
    const absl::Status read = first.Read(what, slot, &at, parts.front().moved);
    int64_t unpaid = what.bytes;
    for (size_t i = 0; i < jobs.size(); ++i) {
      Part& part = parts[i];
      if (!part.status.ok()) continue;
      part.moved.cost.disk_read_bytes = std::min(unpaid, (what.bytes + sharers - 1) / sharers);
      unpaid -= part.moved.cost.disk_read_bytes;
      part.status = read.ok() ? jobs[i]->MoveRead(what, at, slot, part.moved) : read;
    }
  }
  std::vector<Work> work;
  for (Part& part : parts) std::move(part.moved.work.begin(), part.moved.work.end(), std::back_inserter(work));
  engine.Count(jobs, piece, work);  // Before anybody is told.
  std::vector<std::shared_ptr<Job>> ended;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (jobs[i]->Finish(parts[i].status, std::move(parts[i].moved))) ended.push_back(jobs[i]);
  }
  return ended;
}

absl::Status TransferEngine::Job::MoveRead(const Piece& piece, std::byte* at, Slot& slot, Moved& moved) {
  for (const Segment& segment : piece.segments) {
    const DType dtype = transfer_.model->module(transfer_.module).stored[segment.parameter]->dtype;
    DITSERVE_RETURN_IF_ERROR(Convert(segment, {Memory::kHost, at, dtype}, nullptr, slot.readers, moved));
    at += segment.count * SizeOf(dtype);
  }
  return absl::OkStatus();
}

absl::Status TransferEngine::Job::MoveFromSource(const Piece& piece, Moved& moved) {
  const Transfer::Source& source = *transfer_.source;
  Events readers;  // It stays until the transfer is done.
  for (const Segment& segment : piece.segments) {
    const ElementSpan from = SpanIn(*source.buffer, *source_layout_, *source.form, segment);
    DITSERVE_RETURN_IF_ERROR(Convert(segment, from, source.buffer->ready(), readers, moved));
  }
  return absl::OkStatus();
}

absl::Status TransferEngine::Job::Read(const Piece& piece, Slot& slot, std::byte** at, Moved& moved) {
  DITSERVE_RETURN_IF_ERROR(WaitForAll(slot.readers));
  slot.readers.clear();
  const Segment& first = piece.segments.front();
  const StoredTensor& stored = *transfer_.model->module(transfer_.module).stored[first.parameter];
  const int64_t begin = first.begin * SizeOf(stored.dtype);
  const int64_t in_page = (stored.offset_bytes + begin) % kPageBytes;
  std::byte* const pages = path_.read_in_place ? SpanIn(0, first).data - in_page : slot.buffer.data();
  const int64_t size = PageOf(in_page + piece.bytes + kPageBytes - 1);
  *at = pages + in_page;
  const int64_t fresh_bytes = path_.read_in_place ? FreshBytes(0, piece.bytes) : 0;
  const absl::Duration begun = ProcessorTime();
  absl::Status read = transfer_.model->checkpoint()
                          .Read(stored, begin, piece.bytes, absl::MakeSpan(pages, static_cast<size_t>(size)))
                          .status();
  moved.work.push_back({TransferStep(), {piece.bytes, fresh_bytes, ProcessorTime() - begun}});
  return read;
}

absl::Status TransferEngine::Job::Convert(const Segment& segment, ElementSpan from, EventPtr written, Events& readers,
                                          Moved& moved) {
  const int64_t read_bytes = segment.count * SizeOf(from.dtype);
  for (size_t i = 0; i < transfer_.targets.size(); ++i) {
    const Transfer::Target& target = transfer_.targets[i];
    const ElementSpan to = SpanIn(i, segment);
    if (i > 0 || !path_.read_in_place) {
      Events after = target.buffer->in_use_until();
      if (written != nullptr) after.push_back(std::move(written));
      const TransferStep& step = path_.steps[i][static_cast<size_t>(segment.parameter)];
      const auto through = absl::MakeSpan(step).subspan(1, step.size() - 2);
      const absl::Duration begun = ProcessorTime();
      DITSERVE_ASSIGN_OR_RETURN(written, transfer_.device->Enqueue({from, through, to, segment.count}, after));
      if (transfer_.device->IsInHostMemory(to.memory)) {
        const int64_t bytes = segment.count * SizeOf(from.dtype);
        moved.work.push_back({step, {bytes, FreshBytes(i, read_bytes), ProcessorTime() - begun}});
      }
      if (written != nullptr) moved.written[i].push_back(written);
      if (written != nullptr && i == 0) readers.push_back(written);
    }
    if (IsHost(from.memory) && !IsHost(to.memory)) moved.cost.device_copy_bytes += segment.count * SizeOf(from.dtype);
    from = to;
  }
  return absl::OkStatus();
}

bool TransferEngine::Job::Finish(const absl::Status& status, Moved moved) {
  {
    const absl::MutexLock lock(&mutex_);
    status_.Update(status);
    moved_.cost.disk_read_bytes += moved.cost.disk_read_bytes;
    moved_.cost.device_copy_bytes += moved.cost.device_copy_bytes;
    moved_.written.resize(moved.written.size());
    for (size_t i = 0; i < moved.written.size(); ++i) {
      moved_.written[i].insert(moved_.written[i].end(), moved.written[i].begin(), moved.written[i].end());
    }
    if (++finished_ < pieces_.size()) return false;
    result_ = status_;
    moved = std::move(moved_);
  }
  for (size_t i = 0; i < transfer_.targets.size(); ++i) {
    // What makes the next target reads this one, which may be given back as soon as it is ready.
    Events events = moved.written[i];
    if (i + 1 < transfer_.targets.size()) {
      events.insert(events.end(), moved.written[i + 1].begin(), moved.written[i + 1].end());
    }
    result_.Update(SetReady(transfer_.targets[i], events));
  }
  if (ready_.empty()) range_ = ProfilerRange();
  if (transfer_.enqueued) std::move(transfer_.enqueued)(result_, moved.cost);
  return true;
}

absl::Status TransferEngine::Job::SetReady(const Transfer::Target& target, const Events& uses) {
  if (uses.empty()) return absl::OkStatus();
  absl::StatusOr<EventPtr> ready = uses.front();
  if (uses.size() > 1) ready = transfer_.device->Enqueue({}, uses);
  if (!ready.ok()) {
    static_cast<void>(WaitForAll(uses));
    target.buffer->WrittenOnce(nullptr);
    return ready.status();
  }
  target.buffer->WrittenOnce(*ready);
  if (*ready != nullptr) ready_.push_back(*std::move(ready));
  return absl::OkStatus();
}

void TransferEngine::Job::Complete(const absl::Status& passed) {
  range_ = ProfilerRange();
  result_.Update(passed);
  std::move(transfer_.done)(std::move(result_));
}

int64_t TransferEngine::StagingBytes(int threads) { return threads * kPieceBytes; }

absl::StatusOr<std::unique_ptr<TransferEngine>> TransferEngine::Make(Arena* host, Ledger* ledger, int threads) {
  std::vector<Slot> slots;
  for (int i = 0; i < threads; ++i) {
    std::optional<Reservation> reservation = ledger->TryReserve(Memory::kHost, MemoryKind::kStaging, kPieceBytes);
    if (!reservation) {
      return absl::ResourceExhaustedError(absl::StrCat("the host budget is ", ledger->Usage(Memory::kHost).budget_bytes,
                                                       " bytes; ", threads, " transfer threads take ",
                                                       StagingBytes(threads), " for their slots"));
    }
    slots.push_back({*std::move(reservation), host->Take(kPieceBytes), {}});
    DITSERVE_RETURN_IF_ERROR(slots.back().buffer.Prepare());
  }
  return std::unique_ptr<TransferEngine>(new TransferEngine(host, std::move(slots)));
}

TransferEngine::TransferEngine(Arena* host, std::vector<Slot> slots) : host_(host), slots_(std::move(slots)) {
  for (Slot& slot : slots_) {
    threads_.emplace_back([this, &slot] { Run(&slot); });
    pthread_getcpuclockid(threads_.back().native_handle(), &thread_clocks_.emplace_back());
  }
}

TransferEngine::~TransferEngine() {
  {
    const absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
  completions_.reset();  // Nothing reads the slots any more.
  for (Slot& slot : slots_) slot.buffer = Buffer();
  host_->Trim(staging_bytes()).Free();  // Before the reservations end.
}

void TransferEngine::Submit(Transfer transfer) {
  auto job = std::make_shared<Job>(std::move(transfer));
  const absl::MutexLock lock(&mutex_);
  const auto leader =
      std::find_if(queue_.begin(), queue_.end(), [&](const std::shared_ptr<Job>& each) { return each->CanLead(*job); });
  if (leader != queue_.end()) Job::Follow(**leader, job);
  if (!job->AllTaken()) queue_.push_back(std::move(job));
}

Transferred TransferEngine::transferred(const Device& device) const {
  Transferred of_device;
  {
    const absl::MutexLock lock(&mutex_);
    if (const auto found = transferred_.find(&device); found != transferred_.end()) of_device = found->second;
  }
  of_device.work = processor_time();
  return of_device;
}

absl::Duration TransferEngine::processor_time() const {
  absl::Duration taken;
  for (const clockid_t clock : thread_clocks_) taken += ProcessorTime(clock);
  return taken;
}

TransferWork TransferEngine::work() const {
  const absl::MutexLock lock(&mutex_);
  return work_;
}

std::vector<std::shared_ptr<TransferEngine::Job>> TransferEngine::NextPiece(size_t* piece) {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &TransferEngine::HasWorkOrStops));
  if (queue_.empty()) return {};
  std::vector<std::shared_ptr<Job>> jobs = {queue_.front()};
  *piece = jobs.front()->TakePiece(jobs);
  if (jobs.front()->AllTaken()) queue_.pop_front();
  return jobs;
}

void TransferEngine::Run(Slot* slot) {
  // Computing goes first: where it is what takes the time, a product whose threads are interrupted waits for the last
  // of them; where moving is, computing waits and leaves the processor to us. (Linux: of this thread alone. A hint.)
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness);
  size_t piece = 0;
  for (std::vector<std::shared_ptr<Job>> jobs; !(jobs = NextPiece(&piece)).empty();) {
    const std::vector<std::shared_ptr<Job>> ended = Job::Do(*this, jobs, piece, *slot);
    for (const std::shared_ptr<Job>& job : ended) {
      if (job->enqueued().empty()) {
        job->Complete(absl::OkStatus());
      } else {
        completions_->When(job->enqueued(), [job](const absl::Status& passed) { job->Complete(passed); });
      }
    }
  }
}

void TransferEngine::Count(const std::vector<std::shared_ptr<Job>>& jobs, size_t piece, const std::vector<Work>& work) {
  const absl::MutexLock lock(&mutex_);
  for (const std::shared_ptr<Job>& job : jobs) job->Count(piece, transferred_[job->device()]);
  for (const Work& each : work) work_.Add(each.step, each.took);
}

}  // namespace ditserve
