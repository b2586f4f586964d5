#ifndef DITSERVE_SERVER_ENGINE_ENGINE_H_
#define DITSERVE_SERVER_ENGINE_ENGINE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/priority.h"
#include "core/memory/ledger.h"
#include "core/placement/profile.h"
#include "core/residency/policy/join_policy.h"
#include "core/residency/residency_snapshot.h"
#include "models/qwen_image_dit.h"
#include "server/engine/denoise_loop.h"
#include "server/engine/plan.h"

namespace ditserve {

// One request, decoded and checked.
struct ForwardCall {
  std::string model;     // Name of a loaded model.
  ForwardInputs inputs;  // What they view stays as it is until the call is done.
  Profile profile;
  absl::Time deadline = absl::InfiniteFuture();
  Priority priority = Priority::kInteractive;
  JoinPolicy join = JoinPolicy::kAuto;
  // Several passes, one after the other: a denoising loop, and `inputs` as it wants them. The output is what latents
  // become, [B, 16, H/8, W/8].
  std::optional<Denoising> denoising;
};

// How far a call has come.
struct ForwardProgress {
  bool admitted = false;
  int modules_done = 0;
  int modules_total = 0;
  int64_t disk_read_bytes = 0;
  int64_t device_copy_bytes = 0;
  // Of a denoising loop, whose modules are those of all its passes. Where a step has just ended after
  // which latents are asked for: what they are after so many steps.
  int64_t steps_done = 0;
  at::Tensor latents;
  int64_t latents_after = 0;
  // Of the steps that are done, those that a step cache left out of the sweep.
  int64_t steps_skipped = 0;
};

// A step at which a step cache had what blocks add.
struct ReusedStep {
  int64_t step = 0;    // Of the schedule.
  int64_t images = 0;  // For so many.
  int64_t negative_images = 0;
  bool skipped = false;  // For all: the step took no part in the sweep behind what decides that.
};

// What one call took. Units as in ForwardStats of transformer_service.proto.
struct ForwardAccount {
  absl::Duration queue, stall, compute, total;
  int64_t disk_read_bytes = 0;
  int64_t device_copy_bytes = 0;
  int64_t peak_device_bytes = 0;
  int riders = 0;
  std::string device;  // That computed it.
  int64_t non_finite_elements = 0;
};

struct ForwardResult {
  // Shape [B, H/16 * W/16, 64], or latents after a denoising loop; on the CPU, in the dtype of the latents.
  at::Tensor output;
  ForwardAccount account;
  std::vector<ReusedStep> reused_steps;  // In their order.
};

// A call that is under way. Destroying it does not end the call.
class ForwardHandle {
 public:
  virtual ~ForwardHandle() = default;
  // Ends the call with `why` at its next module. Harmless when it is done. Thread-safe.
  virtual void Cancel(absl::Status why) = 0;
};

// What is known of a loaded model.
struct ModelInfo {
  std::string name;
  bool ready = false;
  int64_t parameters = 0;
  int64_t stored_bytes = 0;
  const QwenImageDiT* model = nullptr;  // Outlives the engine's users.
  std::vector<DType> stored_dtypes;     // Of each parameter, in the order of model->modules() and their parameters.
};

// Runs forward passes: what RPC handlers see of everything behind them.
//
// Thread safety: thread-safe. Callbacks run on the engine's threads, and must return quickly.
class Engine {
 public:
  using ProgressCallback = absl::AnyInvocable<void(const ForwardProgress&)>;
  using DoneCallback = absl::AnyInvocable<void(absl::StatusOr<ForwardResult>) &&>;

  virtual ~Engine() = default;

  // Models in the order of the configuration.
  virtual std::vector<ModelInfo> Models() const = 0;

  // The tiers that hold a copy of each module of model `name` now, nearest first.
  virtual absl::StatusOr<std::vector<std::vector<Tier>>> ModuleTiers(const std::string& name) const = 0;

  // Bytes in use, by memory, kind and tier, and the requests that use them: one consistent moment.
  virtual ResidencySnapshot Residency() const = 0;

  // Bytes of all of `memory`, used or not: what a budget's share is of. Errors: as Device::MemoryStatusOf.
  virtual absl::StatusOr<int64_t> MemoryBytes(Memory memory) const = 0;

  // What requests would take, and what else to ask for. Reads weights of nobody and changes nothing; takes up to a
  // second. Errors: NotFound (model), Internal.
  virtual absl::StatusOr<ForwardPlan> Plan(const PlanCall& call) const = 0;

  // Changes a budget while serving. Errors: as ResidencyManager::SetBudget.
  virtual absl::Status SetBudget(Memory memory, int64_t bytes) = 0;

  // Begins a call. `progress` (may be null) is called after admission and after modules; `done` exactly once, also
  // if Submit's work fails at once: on any thread, possibly before Submit returns.
  // Errors given to `done`: NotFound, FailedPrecondition (can never fit), ResourceExhausted (not now),
  // DeadlineExceeded, Cancelled, DataLoss, Unavailable (draining, disk), Internal.
  virtual std::shared_ptr<ForwardHandle> Submit(ForwardCall call, ProgressCallback progress, DoneCallback done) = 0;

  // Refuses new calls with Unavailable, waits for those under way for as long as `timeout`, then cancels them and
  // waits.
  virtual void Drain(absl::Duration timeout) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_ENGINE_H_
