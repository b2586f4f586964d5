#include "server/engine/pass_meter.h"

#include <numeric>
#include <utility>

#include "core/base/status_macros.h"

namespace ditserve {

absl::Status PassMeter::GoOn(std::optional<ModuleIndex> module) {
  range_ = ProfilerRange();
  const Mark before = operations_.last();
  DITSERVE_ASSIGN_OR_RETURN(began_, operations_.SetMark());
  if (!module) return absl::OkStatus();
  module_ = static_cast<size_t>(*module);
  range_ = ProfilerRange(ProfilerRange::kCompute, specs_[*module_].path);
  return Count({before, *began_, std::nullopt});
}

absl::Status PassMeter::Pause(std::optional<ModuleIndex> awaited) {
  range_ = ProfilerRange();
  if (awaited) range_ = ProfilerRange(ProfilerRange::kStall, specs_[static_cast<size_t>(*awaited)].path);
  if (!began_) return absl::OkStatus();
  DITSERVE_ASSIGN_OR_RETURN(Mark end, operations_.SetMark());
  if (module_) operations_.EndModule();
  return Count({*std::exchange(began_, std::nullopt), std::move(end), module_.value_or(0)});
}

absl::Status PassMeter::End() {
  DITSERVE_RETURN_IF_ERROR(Pause());
  for (const Interval& interval : std::exchange(intervals_, {})) DITSERVE_RETURN_IF_ERROR(Settle(interval));
  return absl::OkStatus();
}

absl::Duration PassMeter::compute() const {
  return std::accumulate(modules_.begin(), modules_.end(), absl::ZeroDuration());
}

std::vector<absl::Duration> PassMeter::undisturbed() const {
  const absl::Duration all = compute();
  const double share = held_up_ < all ? absl::FDivDuration(all - held_up_, all) : 0;
  std::vector<absl::Duration> modules = modules_;
  for (absl::Duration& module : modules) module *= share;
  return modules;
}

std::optional<absl::Duration> PassMeter::stall() const {
  return beside_executor_ ? std::optional(stall_) : std::nullopt;
}

absl::Status PassMeter::Count(Interval interval) {
  intervals_.push_back(std::move(interval));
  while (!intervals_.empty() && operations_.HasPassed(intervals_.front().to)) {
    DITSERVE_RETURN_IF_ERROR(Settle(intervals_.front()));
    intervals_.pop_front();
  }
  return absl::OkStatus();
}

absl::Status PassMeter::Settle(const Interval& interval) {
  DITSERVE_ASSIGN_OR_RETURN(const absl::Duration time, TimeBetween(interval.from, interval.to));
  (interval.module ? modules_[*interval.module] : stall_) += time;
  if (interval.module) held_up_ += interval.to.held_up - interval.from.held_up;
  beside_executor_ |= interval.to.event != nullptr;
  return absl::OkStatus();
}

}  // namespace ditserve
