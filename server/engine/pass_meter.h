#ifndef DITSERVE_SERVER_ENGINE_PASS_METER_H_
#define DITSERVE_SERVER_ENGINE_PASS_METER_H_

#include <cstddef>
#include <deque>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/base/profiler_range.h"
#include "core/storage/module.h"
#include "server/engine/operation_queue.h"

namespace ditserve {

// What a pass takes of its device, by marks around what it issues at a time: each interval between two marks that
// follow each other on the device is computing of one pass, or the device's wait for the weights of one, or nobody's.
// All passes together never take more than the time that has passed.
//
// Thread safety: thread-compatible; called on the executor. Ownership: `operations` and `specs` must outlive
// it.
// Errors: of all, the device's.
class PassMeter {
 public:
  // `specs`: of all modules.
  PassMeter(OperationQueue* operations, const std::vector<ModuleSpec>* specs)
      : operations_(*operations), specs_(*specs), modules_(specs->size()) {}

  // The pass goes on and issues operations, with the weights that it waited for or without any.
  absl::Status GoOn(std::optional<ModuleIndex> module);
  // It waits, for this module's weights or for something else: what it has issued since it went on is computed, for the
  // last of its modules.
  absl::Status Pause(std::optional<ModuleIndex> awaited = std::nullopt);
  // It has ended, and its operations have passed.
  absl::Status End();

  // --- After End.
  // Of each module, from when its weights were there until the next one was asked for; the first has what was before.
  const std::vector<absl::Duration>& modules() const { return modules_; }
  absl::Duration compute() const;
  // By module, what it would have been had nothing held operations up (Mark::held_up): of each the same share less, for
  // a module is shorter than the pieces of work that transfers take.
  std::vector<absl::Duration> undisturbed() const;
  // For how long the device had nothing to do, because the weights of this pass were not there. Nullopt where no
  // device goes on beside the executor.
  std::optional<absl::Duration> stall() const;

 private:
  struct Interval {
    Mark from, to;
    std::optional<size_t> module;  // Nullopt: stall.
  };

  // Counts it once it has passed, and now what has of those before.
  absl::Status Count(Interval interval);
  absl::Status Settle(const Interval& interval);

  OperationQueue& operations_;
  const std::vector<ModuleSpec>& specs_;
  ProfilerRange range_;        // Of issuing operations, or of the wait for weights.
  std::optional<Mark> began_;  // Nullopt while it waits.
  std::optional<size_t> module_;
  std::deque<Interval> intervals_;  // That have not passed, as far as is known.
  std::vector<absl::Duration> modules_;
  absl::Duration stall_;
  absl::Duration held_up_;
  bool beside_executor_ = false;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_PASS_METER_H_
