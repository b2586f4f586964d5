#include "server/engine/compute_pace.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>

namespace ditserve {
namespace {

double Sum(const std::vector<double>& work) { return std::accumulate(work.begin(), work.end(), 0.0); }

}  // namespace

absl::Duration ComputePace::Size::Computing(size_t module) const {
  std::vector<absl::Duration> taken;
  for (const std::vector<absl::Duration>& pass : passes) taken.push_back(pass[module]);
  const auto median = taken.begin() + (static_cast<std::ptrdiff_t>(taken.size()) - 1) / 2;
  std::nth_element(taken.begin(), median, taken.end());
  return *median;
}

void ComputePace::Learn(const ComputedShape& of, std::vector<absl::Duration> modules) {
  const auto same = std::find_if(sizes_.begin(), sizes_.end(), [&](const Size& each) { return each.of == of; });
  Size size{of, {}};
  if (same != sizes_.end()) {
    size = std::move(*same);
    sizes_.erase(same);
  }
  size.passes.push_back(std::move(modules));
  if (size.passes.size() > kPasses) size.passes.pop_front();
  sizes_.push_back(std::move(size));
  if (sizes_.size() > kSizes) sizes_.pop_front();
}

ComputingPrediction PredictFrom(const std::deque<ComputePace::Size>& sizes, const ComputedShape& of,
                                absl::FunctionRef<std::vector<double>(const ComputedShape&)> work_of) {
  if (sizes.empty()) return {};
  const std::vector<double> work = work_of(of);
  const ComputePace::Size* nearest = nullptr;
  std::vector<double> nearest_work;
  double least = std::numeric_limits<double>::infinity();
  for (const ComputePace::Size& size : sizes) {
    if (size.of.arithmetic != of.arithmetic) continue;
    std::vector<double> of_size = work_of(size.of);
    const double distance = size.of == of ? -1 : std::abs(std::log(Sum(of_size) / Sum(work)));
    if (distance >= least) continue;
    least = distance;
    nearest = &size;
    nearest_work = std::move(of_size);
  }
  if (nearest == nullptr) return {};
  ComputingPrediction prediction{{}, nearest->of.shape};
  for (size_t i = 0; i < work.size(); ++i) {
    // What a pass does without computes nothing, and no time was taken of it: it is last.
    const bool used = nearest_work[i] > 0;
    prediction.modules.push_back(used ? nearest->Computing(i) * (work[i] / nearest_work[i]) : absl::ZeroDuration());
  }
  return prediction;
}

}  // namespace ditserve
