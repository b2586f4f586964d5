#ifndef DITSERVE_TESTS_TESTING_FAKE_ENGINE_H_
#define DITSERVE_TESTS_TESTING_FAKE_ENGINE_H_

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "server/engine/engine.h"

namespace ditserve {

// An engine that computes nothing: tests look at the calls it is given and answer them.
//
// Thread safety: thread-safe.
class FakeEngine final : public Engine {
 public:
  // One submitted call. Cancelled, it ends with the reason, as an engine's does.
  class Call final : public ForwardHandle {
   public:
    Call(ForwardCall forward, ProgressCallback progress, DoneCallback done)
        : forward_(std::move(forward)), progress_(std::move(progress)), done_(std::move(done)) {}

    const ForwardCall& forward() const { return forward_; }

    void Report(const ForwardProgress& progress) { progress_(progress); }

    void Answer(absl::StatusOr<ForwardResult> result) ABSL_LOCKS_EXCLUDED(mutex_) {
      DoneCallback done;
      {
        absl::MutexLock lock(&mutex_);
        done = std::exchange(done_, nullptr);
      }
      if (done != nullptr) std::move(done)(std::move(result));
    }

    void Cancel(absl::Status why) override {
      if (!cancelled_.HasBeenNotified()) cancelled_.Notify();
      Answer(std::move(why));
    }

    void WaitForCancel() const { cancelled_.WaitForNotification(); }

   private:
    const ForwardCall forward_;
    ProgressCallback progress_;
    absl::Notification cancelled_;
    absl::Mutex mutex_;
    DoneCallback done_ ABSL_GUARDED_BY(mutex_);
  };

  using Responder = std::function<absl::StatusOr<ForwardResult>(const ForwardCall&)>;

  explicit FakeEngine(std::vector<ModelInfo> models) : models_(std::move(models)) {}

  void SetModels(std::vector<ModelInfo> models) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    models_ = std::move(models);
  }
  void SetTiers(std::vector<std::vector<Tier>> tiers) { tiers_ = std::move(tiers); }
  void SetMemoryBytes(Memory memory, int64_t bytes) { memory_bytes_[Index(memory)] = bytes; }
  void SetResidency(ResidencySnapshot residency) { residency_ = std::move(residency); }

  void SetPlanner(std::function<absl::StatusOr<ForwardPlan>(const PlanCall&)> planner) {
    planner_ = std::move(planner);
  }

  // From here on calls are answered before Submit returns.
  void AnswerAtOnce(Responder responder) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    responder_ = std::move(responder);
  }

  // Blocks until call `index` was submitted.
  std::shared_ptr<Call> WaitForCall(size_t index = 0) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto there = [this, index]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_.size() > index; };
    mutex_.Await(absl::Condition(&there));
    return calls_[index];
  }

  size_t submitted() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return calls_.size();
  }

  std::vector<ModelInfo> Models() const override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return models_;
  }
  absl::StatusOr<std::vector<std::vector<Tier>>> ModuleTiers(const std::string&) const override { return tiers_; }
  ResidencySnapshot Residency() const override { return residency_; }
  absl::StatusOr<int64_t> MemoryBytes(Memory memory) const override { return memory_bytes_[Index(memory)]; }
  absl::StatusOr<ForwardPlan> Plan(const PlanCall& call) const override { return planner_(call); }
  absl::Status SetBudget(Memory memory, int64_t bytes) override {
    MemoryInfo& info =
        IsHost(memory) ? residency_.host : residency_.devices[static_cast<size_t>(DeviceOf(memory))].memory;
    info.usage.wanted_bytes = bytes;
    return absl::OkStatus();
  }

  std::shared_ptr<ForwardHandle> Submit(ForwardCall forward, ProgressCallback progress, DoneCallback done) override
      ABSL_LOCKS_EXCLUDED(mutex_) {
    auto call = std::make_shared<Call>(std::move(forward), std::move(progress), std::move(done));
    Responder responder;
    bool draining;
    {
      absl::MutexLock lock(&mutex_);
      calls_.push_back(call);
      responder = responder_;
      draining = draining_;
    }
    if (draining) {
      call->Answer(absl::UnavailableError("the server is stopping"));
    } else if (responder) {
      call->Answer(responder(call->forward()));
    }
    return call;
  }

  // Refuses new calls; those under way are the test's to end.
  void Drain(absl::Duration) override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
  }

 private:
  std::vector<std::vector<Tier>> tiers_;
  ResidencySnapshot residency_;
  std::array<int64_t, 3> memory_bytes_ = {};  // By Index.
  std::function<absl::StatusOr<ForwardPlan>(const PlanCall&)> planner_;
  mutable absl::Mutex mutex_;
  std::vector<ModelInfo> models_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Call>> calls_ ABSL_GUARDED_BY(mutex_);
  Responder responder_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_FAKE_ENGINE_H_
