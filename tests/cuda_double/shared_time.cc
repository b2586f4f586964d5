// The double's time where operations share what does them.
#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "tests/cuda_double/runtime.h"

namespace ditserve::cuda_double {
namespace {

// What does an operation, and how soon its turn is.
struct Claim {
  std::pair<int, bool> on;  // Of a device the engine for copies, or the processor.
  int priority;
};

// Operations, each of which begins when those before it have ended and its processor is free.
class Schedule {
 public:
  // `claims`: of each operation; those of streams that are gone have none, and what lasts no time needs none.
  Schedule(const std::vector<LateMachine::Timed>& operations, std::vector<std::optional<Claim>> claims)
      : operations_(operations),
        claims_(std::move(claims)),
        before_on_stream_(operations.size()),
        ends_(operations.size()) {
    std::map<size_t, size_t> last;
    for (size_t i = 0; i < operations.size(); ++i) {
      const auto before = last.find(operations[i].stream);
      if (before != last.end()) before_on_stream_[i] = before->second;
      last[operations[i].stream] = i;
    }
  }

  absl::Duration End() {
    for (;;) {
      while (BeginAll()) {
      }
      absl::Duration next = absl::InfiniteDuration();
      for (const std::optional<absl::Duration>& end : ends_) {
        if (end && *end > now_) next = std::min(next, *end);
      }
      if (next == absl::InfiniteDuration()) return now_;
      now_ = next;
    }
  }

 private:
  bool HasEnded(size_t i) const { return ends_[i] && *ends_[i] <= now_; }
  bool IsReady(size_t i) const {
    const std::vector<size_t>& after = operations_[i].after;
    return !ends_[i] && (!before_on_stream_[i] || HasEnded(*before_on_stream_[i])) &&
           std::all_of(after.begin(), after.end(), [this](size_t each) { return HasEnded(each); });
  }

  // Whether anything began now.
  bool BeginAll() {
    bool any = false;
    std::map<std::pair<int, bool>, size_t> chosen;
    for (size_t i = 0; i < operations_.size(); ++i) {
      if (!IsReady(i)) continue;
      if (operations_[i].duration == absl::ZeroDuration() || !claims_[i]) {
        ends_[i] = now_ + operations_[i].duration;
        any = true;
      } else if (free_at_[claims_[i]->on] <= now_) {
        const auto [other, is_first] = chosen.emplace(claims_[i]->on, i);
        if (!is_first && claims_[i]->priority < claims_[other->second]->priority) other->second = i;
      }
    }
    if (any) return true;  // What is ready now may go before what was chosen.
    for (const auto& [on, i] : chosen) ends_[i] = free_at_[on] = now_ + operations_[i].duration;
    return !chosen.empty();
  }

  const std::vector<LateMachine::Timed>& operations_;
  const std::vector<std::optional<Claim>> claims_;
  std::vector<std::optional<size_t>> before_on_stream_;
  std::vector<std::optional<absl::Duration>> ends_;  // Of those that have begun.
  std::map<std::pair<int, bool>, absl::Duration> free_at_;
  absl::Duration now_;
};

}  // namespace

absl::Duration Runtime::EndsAtOnSharedProcessors() {
  const std::vector<LateMachine::Timed> operations = machine_.TimedOperations();
  std::vector<std::optional<Claim>> claims;
  const absl::MutexLock lock(&mutex_);
  std::map<size_t, const Stream*> streams;
  for (const auto& [handle, stream] : streams_) streams[stream.index] = &stream;
  for (const LateMachine::Timed& operation : operations) {
    const auto stream = streams.find(operation.stream);
    claims.emplace_back();
    if (stream == streams.end()) continue;
    const bool is_copy = operation.place == "cudaMemcpyAsync";
    claims.back() = Claim{{stream->second->device, is_copy}, stream->second->priority};
  }
  return Schedule(operations, std::move(claims)).End();
}

}  // namespace ditserve::cuda_double
