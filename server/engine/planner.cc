#include "server/engine/planner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"
#include "core/placement/route_maker.h"
#include "models/errors.h"
#include "server/engine/router.h"

namespace ditserve {
namespace {

constexpr size_t kMostOffers = 4;

// So much less must it be to be worth a change.
constexpr double kWorthwhile = 0.95;

int64_t MovedBytes(const PlannedPass& pass) { return pass.disk_read_bytes + pass.device_copy_bytes; }

double CostOf(const PlannedPass& pass, bool timed) {
  return timed ? absl::ToDoubleSeconds(*pass.time) : static_cast<double>(MovedBytes(pass));
}

// By time where both have one, else by the bytes that are moved.
bool IsCheaper(const PlannedPass& a, const PlannedPass& b, double factor) {
  const bool timed = a.time && b.time;
  return CostOf(a, timed) < factor * CostOf(b, timed);
}

bool IsWorthwhile(const PlanOffer& offer, const ForwardPlan& plan) {
  if (!plan.refusal.ok() || offer.repeated.most_riders > plan.repeated.most_riders) return true;
  return IsCheaper(offer.repeated, plan.repeated, kWorthwhile);
}

}  // namespace

absl::StatusOr<ForwardPlan> Planner::Plan(const PlanCall& call) const {
  absl::StatusOr<ForwardPlan> plan = absl::InternalError("no plan was made");
  DITSERVE_RETURN_IF_ERROR(CatchStatus([&] { plan = MakePlan(call); }));
  return plan;
}

absl::StatusOr<ForwardPlan> Planner::MakePlan(const PlanCall& call) const {
  ForwardPlan plan;
  plan.device = device_.name();
  const at::ScalarType arithmetic = ArithmeticOn(device_, call.profile);
  plan.activation_bytes = model_.ActivationBytes(call.shape, arithmetic);
  plan.window_bytes = WindowBytes(call);
  plan.paces.transfers = residency_.SpeedsOf(device());
  plan.paces.computed = model_.PredictComputing(device(), {call.shape, arithmetic}).from;
  absl::StatusOr<Passes> passes = PassesOf(call, call.shape, call.profile);
  plan.refusal = CheckComputation(call.profile, device_);
  if (!plan.refusal.ok()) {
    passes = plan.refusal;
  } else if (passes.ok()) {
    plan.first = passes->first;
    plan.repeated = passes->repeated;
  } else if (absl::IsFailedPrecondition(passes.status())) {
    plan.refusal = Refuse(passes.status(), call);
  } else if (absl::IsResourceExhausted(passes.status())) {
    plan.refusal = passes.status();
  } else {
    return passes.status();
  }
  plan.offers = OffersFor(call, plan);
  return plan;
}

absl::Status Planner::Refuse(const absl::Status& never_fits, const PlanCall& call) const {
  std::optional<ForwardShape> fits;
  DITSERVE_RETURN_IF_ERROR(CatchStatus([&] { fits = LargestSquare(call, 1); }));
  const std::string what =
      fits ? absl::StrCat("with this batch and these prompts ", fits->width, "x", fits->height, " pixels fit")
           : "no image fits with this batch and these prompts";
  return WithMessage(never_fits, absl::StrCat(never_fits.message(), "; ", what));
}

int64_t Planner::WindowBytes(const PlanCall& call) const {
  return residency_.WindowBytes(model_.id, call.profile, model_.Skips(call.known_timestep), device());
}

absl::StatusOr<RideOptions> Planner::WayOf(const PlanCall& call, const ForwardShape& shape,
                                           const Profile& profile) const {
  return WayTo(device_, model_, shape, profile, call.beside_bytes ? call.beside_bytes(shape.height, shape.width) : 0);
}

absl::StatusOr<Planner::Passes> Planner::PassesOf(const PlanCall& call, const ForwardShape& shape,
                                                  const Profile& profile) const {
  const at::ScalarType arithmetic = ArithmeticOn(device_, profile);
  DITSERVE_ASSIGN_OR_RETURN(RideOptions options, WayOf(call, shape, profile));
  options.skips = model_.Skips(call.known_timestep);
  const ComputingPrediction computing = model_.PredictComputing(device(), {shape, arithmetic});
  const TransferSpeeds speeds = residency_.SpeedsOf(device());
  DITSERVE_ASSIGN_OR_RETURN(const Forecast forecast,
                            residency_.ForecastRide(model_.id, profile, options, call.riders, computing.modules));
  const auto pass_of = [&](const ForecastLap& lap) {
    PlannedPass pass{lap.device, lap.host, lap.disk_read_bytes, lap.device_copy_bytes, lap.most_riders, {}, {}};
    if (!computing.from) return pass;
    pass.computing = lap.computing;
    // Copies are no slower than the checkpoint: where computing always hid them, its speed is bad enough.
    const bool known = speeds.checkpoint || (lap.disk_read_bytes == 0 && (speeds.copies || lap.copy_read_bytes == 0));
    if (known) pass.time = lap.time;
    return pass;
  };
  return Passes{pass_of(forecast.first), pass_of(forecast.repeated)};
}

void Planner::Offer(const PlanCall& call, const ForwardPlan& plan, PlanOffer offer, const Profile& profile,
                    std::vector<PlanOffer>& offers) const {
  if (!profile.MayUse(device_.name()) || !CheckComputation(profile, device_).ok()) return;
  const absl::StatusOr<Passes> passes = PassesOf(call, offer.shape.value_or(call.shape), profile);
  if (!passes.ok()) return;
  offer.equal_values = residency_.HaveEqualValues(model_.id, call.profile, profile, device());
  offer.repeated = passes->repeated;
  if (IsWorthwhile(offer, plan)) offers.push_back(std::move(offer));
}

std::vector<PlanOffer> Planner::OffersFor(const PlanCall& call, const ForwardPlan& plan) const {
  std::vector<PlanOffer> offers;
  for (const Profile& other : call.others) {
    if (other.name != call.profile.name) Offer(call, plan, {.profile = other.name}, other, offers);
  }
  if (call.profile.vram_limit_bytes) {
    Profile unlimited = call.profile;
    unlimited.vram_limit_bytes.reset();
    Offer(call, plan, {.without_limit = true}, unlimited, offers);
  }
  std::stable_sort(offers.begin(), offers.end(),
                   [](const PlanOffer& a, const PlanOffer& b) { return IsCheaper(a.repeated, b.repeated, 1); });
  offers.resize(std::min(offers.size(), kMostOffers));
  // Another size is another image: only where this one is refused, or some would have to wait.
  if (!plan.refusal.ok() || plan.repeated.most_riders < call.riders) {
    if (const auto shape = LargestSquare(call, plan.refusal.ok() ? call.riders : 1)) {
      Offer(call, plan, {.shape = shape}, call.profile, offers);
    }
  }
  return offers;
}

std::optional<ForwardShape> Planner::LargestSquare(const PlanCall& call, int riders) const {
  constexpr int64_t kStep = 64;
  const ResidencySnapshot now = residency_.Snapshot();
  const auto available = [&](Memory memory) {
    return now.memory(memory).usage.wanted_bytes - residency_.least_bytes(memory);
  };
  const int64_t on_device = available(device_.memory()) - WindowBytes(call), on_host = available(Memory::kHost);
  const auto square = [&](int64_t steps) {
    ForwardShape of_side = call.shape;
    of_side.height = of_side.width = steps * kStep;
    return of_side;
  };
  int64_t fits = 0, most = std::max(call.shape.height, call.shape.width) / kStep;  // In steps.
  while (fits < most) {
    const int64_t middle = (fits + most + 1) / 2;
    const absl::StatusOr<RideOptions> of_one = WayOf(call, square(middle), call.profile);
    if (!of_one.ok()) throw StatusError(of_one.status());
    const bool takes_host = of_one->host_bytes > 0;
    if (riders * of_one->activation_bytes > on_device || (takes_host && riders * of_one->host_bytes > on_host)) {
      most = middle - 1;
    } else {
      fits = middle;
    }
  }
  if (fits == 0) return std::nullopt;
  return square(fits);
}

}  // namespace ditserve
