#include "server/engine/compute_pace.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace ditserve {
namespace {

double Sum(const std::vector<double>& work) { return std::accumulate(work.begin(), work.end(), 0.0); }

}  // namespace

void ComputePace::Learn(Pass pass) {
  const auto same = std::find_if(passes_.begin(), passes_.end(), [&](const Pass& each) { return each.of == pass.of; });
  if (same != passes_.end()) {
    for (size_t i = 0; i < pass.computing.size(); ++i) pass.computing[i] = (pass.computing[i] + same->computing[i]) / 2;
    passes_.erase(same);
  } else if (passes_.size() == kRemembered) {
    passes_.pop_front();
  }
  passes_.push_back(std::move(pass));
}

ComputingPrediction PredictFrom(const std::deque<ComputePace::Pass>& passes, const ComputedShape& of,
                                absl::FunctionRef<std::vector<double>(const ComputedShape&)> work_of) {
  if (passes.empty()) return {};
  const std::vector<double> work = work_of(of);
  const ComputePace::Pass* nearest = nullptr;
  std::vector<double> nearest_work;
  double least = std::numeric_limits<double>::infinity();
  for (const ComputePace::Pass& pass : passes) {
    if (pass.of.arithmetic != of.arithmetic) continue;
    std::vector<double> of_pass = work_of(pass.of);
    const double distance = pass.of == of ? -1 : std::abs(std::log(Sum(of_pass) / Sum(work)));
    if (distance >= least) continue;
    least = distance;
    nearest = &pass;
    nearest_work = std::move(of_pass);
  }
  if (nearest == nullptr) return {};
  ComputingPrediction prediction{{}, nearest->of.shape};
  for (size_t i = 0; i < work.size(); ++i) {
    // What a pass does without computes nothing, and no time was taken of it: it is last.
    const bool used = nearest_work[i] > 0;
    prediction.modules.push_back(used ? nearest->computing[i] * (work[i] / nearest_work[i]) : absl::ZeroDuration());
  }
  return prediction;
}

}  // namespace ditserve
