#include "server/engine/watchdog.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

namespace ditserve {

void ProgressDeadline::Began(PassId pass, double work, absl::Duration now) { passes_[pass] = {work, now}; }

void ProgressDeadline::Ended(PassId pass, bool has_output, absl::Duration now) {
  const auto ended = passes_.find(pass);
  if (ended == passes_.end()) return;
  const auto [work, began] = ended->second;
  passes_.erase(ended);
  if (!has_output) {
    left_work_ += work;
  } else if (work > 0) {
    if (seconds_per_work_.size() == kRemembered) seconds_per_work_.pop_front();
    seconds_per_work_.push_back(absl::ToDoubleSeconds(now - began) / work);
  }
}

void ProgressDeadline::Marked() {
  is_marked_ = true;
  age_ = absl::ZeroDuration();
  marked_work_ = std::exchange(left_work_, 0);
}

void ProgressDeadline::Passed() {
  is_marked_ = false;
  age_ = absl::ZeroDuration();
  marked_work_ = 0;
}

void ProgressDeadline::Look(absl::Duration now) {
  if (is_marked_) age_ += std::min(now - looked_, kMostALook);
  looked_ = now;
}

absl::Duration ProgressDeadline::Allowed() const {
  double work = left_work_ + marked_work_;
  for (const auto& [id, pass] : passes_) work += pass.work;
  return std::max(kLeast, kFactor * absl::Seconds(work * SecondsPerWork()));
}

double ProgressDeadline::SecondsPerWork() const {
  if (seconds_per_work_.empty()) return 1 / kAssumedPerSecond;
  return *std::max_element(seconds_per_work_.begin(), seconds_per_work_.end());
}

void Watchdog::Began(ProgressDeadline::PassId pass, double work, absl::Duration now) {
  const absl::MutexLock lock(&mutex_);
  deadline_.Began(pass, work, now);
}

void Watchdog::Ended(ProgressDeadline::PassId pass, bool has_output, absl::Duration now) {
  const absl::MutexLock lock(&mutex_);
  deadline_.Ended(pass, has_output, now);
}

absl::Status Watchdog::Check(absl::Duration now) {
  const bool passed = AllDone(mark_);
  bool marks = false;
  {
    const absl::MutexLock lock(&mutex_);
    if (passed) deadline_.Passed();
    deadline_.Look(now);
    marks = passed && deadline_.HasPasses();
    if (deadline_.IsOverdue()) {
      return absl::UnavailableError(
          absl::StrFormat("%s is lost: it has not got on for %s; what is under way should take it less than %s",
                          device_.name(), absl::FormatDuration(deadline_.age()),
                          absl::FormatDuration(deadline_.Allowed() / ProgressDeadline::kFactor)));
    }
  }
  if (!passed) return absl::OkStatus();
  mark_.clear();
  if (!marks) return absl::OkStatus();
  // (Where it can't be set, whoever asks for the device's health is told why.)
  if (absl::StatusOr<Events> marks = device_.Mark(); marks.ok()) mark_ = *std::move(marks);
  const absl::MutexLock lock(&mutex_);
  deadline_.Marked();
  return absl::OkStatus();
}

void AnswerDeadline::Asked(const Device& device) {
  const absl::MutexLock lock(&mutex_);
  asked_ = &device;
  age_ = absl::ZeroDuration();
}

void AnswerDeadline::Answered() {
  const absl::MutexLock lock(&mutex_);
  asked_ = nullptr;
}

void AnswerDeadline::Begun() {
  const absl::MutexLock lock(&mutex_);
  most_ = kMost;
}

absl::Status AnswerDeadline::Look(absl::Duration now) {
  const absl::MutexLock lock(&mutex_);
  if (asked_ != nullptr) age_ += std::min(now - looked_, ProgressDeadline::kMostALook);
  looked_ = now;
  if (asked_ == nullptr || age_ <= most_) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrFormat("%s is lost: it has not answered for %s", asked_->name(), absl::FormatDuration(age_)));
}

}  // namespace ditserve
