#ifndef DITSERVE_SERVER_ENGINE_PLANNER_H_
#define DITSERVE_SERVER_ENGINE_PLANNER_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/devices/device.h"
#include "core/residency/residency_manager.h"
#include "server/engine/plan.h"
#include "server/engine/served_model.h"

namespace ditserve {

// Tells what requests would take, from what the manager forecasts and the model has measured.
//
// Thread safety: thread-safe. Ownership: what it is given must outlive it. It runs the model on meta tensors and the
// policy in trials, and takes milliseconds to a second of the thread that asks.
class Planner {
 public:
  Planner(const ResidencyManager& residency, const Device& device, ServedModel& model)
      : residency_(residency), device_(device), model_(model) {}

  // Errors: Internal. A request that would be refused is a plan that says so.
  absl::StatusOr<ForwardPlan> Plan(const PlanCall& call) const;

  // What Forward says to a request that can never fit: the shortage, and what would fit.
  absl::Status Refuse(const absl::Status& never_fits, const PlanCall& call) const;

 private:
  absl::StatusOr<ForwardPlan> MakePlan(const PlanCall& call) const;
  struct Passes {
    PlannedPass first, repeated;
  };

  int64_t WindowBytes(const PlanCall& call) const;
  // What one such request takes.
  absl::StatusOr<RideOptions> WayOf(const PlanCall& call, const ForwardShape& shape, const Profile& profile) const;
  // Of the call in another shape or profile.
  absl::StatusOr<Passes> PassesOf(const PlanCall& call, const ForwardShape& shape, const Profile& profile) const;
  void Offer(const PlanCall& call, const ForwardPlan& plan, PlanOffer offer, const Profile& profile,
             std::vector<PlanOffer>& offers) const;
  std::vector<PlanOffer> OffersFor(const PlanCall& call, const ForwardPlan& plan) const;
  // The largest square image that fits beside the window, `riders` times at once; nullopt if none does.
  std::optional<ForwardShape> LargestSquare(const PlanCall& call, int riders) const;

  int device() const { return DeviceOf(device_.memory()); }

  const ResidencyManager& residency_;
  const Device& device_;  // On which they would be computed.
  ServedModel& model_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_PLANNER_H_
