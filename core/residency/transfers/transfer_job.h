#ifndef DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_JOB_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_JOB_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/profiler_range.h"
#include "core/devices/device.h"
#include "core/placement/copy_form.h"
#include "core/residency/transfers/transfer.h"
#include "core/residency/transfers/transfer_pace.h"
#include "core/residency/transfers/transfer_path.h"
#include "core/residency/transfers/transfer_work.h"

namespace ditserve {

// A piece of a module, as it is read from the checkpoint.
struct PieceId {
  int64_t model;  // ModelWeights::id.
  ModuleIndex module;
  size_t piece;

  friend bool operator==(const PieceId&, const PieceId&) = default;
};

// A transfer cut into pieces, which threads move one by one.
//
// Thread safety: thread-safe, but for what is said of taking.
class TransferJob {
 public:
  // Of a piece, as it is read.
  static constexpr int64_t kMostPieceBytes = 4 << 20;

  // What a thread did to bytes.
  struct Work {
    TransferStep step;
    TimedBytes took;
  };
  // What became of pieces.
  struct Moved {
    TransferCost cost;
    std::vector<Events> written;  // By target: conversions that write it.
    std::vector<Work> work;
  };

  explicit TransferJob(Transfer transfer);

  const Device* device() const { return transfer_.device; }
  // Whether its pieces are read to a slot, and no copy's memory.
  bool ReadsToSlots() const { return !transfer_.source && !path_.read_in_place; }
  PieceId IdOf(size_t piece) const { return {transfer_.model->id(), transfer_.module, piece}; }
  int64_t BytesOf(size_t piece) const { return pieces_[piece].bytes; }
  // Counts what the piece moves.
  void Count(size_t piece, Transferred& done) const;

  // --- callers serialize. Each piece is taken once, and then moved and finished.
  bool AllTaken() const { return first_free_ == pieces_.size(); }
  // Whether it has yet to take the piece, and takes it from a slot.
  bool Wants(const PieceId& id) const { return ReadsToSlots() && IdOf(id.piece) == id && !pieces_[id.piece].taken; }
  void Take(size_t piece);
  size_t TakeNext();

  // Memory is given by the first thread that comes, so that no lock is held meanwhile; the others wait for it.
  absl::Status Prepare() ABSL_LOCKS_EXCLUDED(mutex_);
  // Where the piece's first byte is then: in the slot.
  absl::StatusOr<std::byte*> ReadTo(std::byte* slot, size_t piece, std::vector<Work>& work) const {
    return Read(piece, slot, work);
  }
  // Takes the piece, as it was read, through the targets. Appends to `readers` what reads it.
  absl::Status MoveRead(size_t piece, std::byte* at, Events& readers, Moved& moved) const;
  // Of a transfer that reads to no slots.
  absl::Status Move(size_t piece, Moved& moved) const;
  // True for the last one: `enqueued` was called, and Complete is to be, once enqueued() have passed.
  bool Finish(const absl::Status& status, Moved moved) ABSL_LOCKS_EXCLUDED(mutex_);

  // Something that it enqueued failed.
  void Failed(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);

  // Once it is finished.
  const Events& enqueued() const { return ready_; }
  // Calls `done`.
  void Complete(const absl::Status& passed) ABSL_LOCKS_EXCLUDED(mutex_);

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
    bool taken = false;
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
  absl::Status PrepareTargets() const;
  // To `slot` or, null, to the first target. Where its first byte is then.
  absl::StatusOr<std::byte*> Read(size_t piece, std::byte* slot, std::vector<Work>& work) const;
  absl::Status MoveFromSource(size_t piece, Moved& moved) const;
  // Takes the segment through the targets that `from` is not in yet, and appends to `readers` what reads `from`.
  absl::Status Convert(const Segment& segment, ElementSpan from, EventPtr written, Events& readers, Moved& moved) const;
  // Sets the target's event, of all that writes it, or reads it to write the next; each of that is behind who still
  // read it.
  absl::Status SetReady(const Transfer::Target& target, const Events& uses);

  bool IsPrepared() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stage_ == Stage::kPrepared; }

  Transfer transfer_;
  std::optional<CopyLayout> source_layout_;
  std::vector<CopyLayout> layouts_;  // Of the targets.
  TransferPath path_;
  std::vector<Piece> pieces_;
  size_t first_free_ = 0;  // All pieces before it are taken.
  int64_t bytes_ = 0;      // Of all pieces.
  ProfilerRange range_;    // From when its targets are prepared until they are written.
  Events ready_;           // Of the targets. Set by whoever does the last piece.
  absl::Status result_;    // Likewise.

  absl::Mutex mutex_;
  Stage stage_ ABSL_GUARDED_BY(mutex_) = Stage::kNew;
  size_t finished_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // The first error.
  Moved moved_ ABSL_GUARDED_BY(mutex_);          // Of all pieces.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_JOB_H_
