#include "models/denoising/step_cache.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sub.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"

namespace ditserve {
namespace {

// Of values that may be overwritten. (Of meta tensors LibTorch takes no magnitudes.)
at::Tensor MeanMagnitude(const at::Tensor& values) {
  if (!values.is_meta()) values.abs_();
  return values.mean();
}

}  // namespace

absl::Status CheckStepCache(const StepCacheOptions& options) {
  if (!(options.threshold > 0 && std::isfinite(options.threshold))) {
    return FieldError("threshold", absl::StrCat(options.threshold, ", expected a finite number above 0"));
  }
  for (const double coefficient : options.polynomial) {
    if (!std::isfinite(coefficient)) {
      return FieldError("polynomial", absl::StrCat("has ", coefficient, ", expected finite numbers"));
    }
  }
  return absl::OkStatus();
}

StepCache::StepCache(const StepCacheOptions& options, int64_t image_tokens, int64_t width,
                     const at::TensorOptions& activations)
    : options_(options),
      signal_(at::empty({image_tokens, width}, activations)),
      residual_(at::empty({image_tokens, width}, activations)) {}

at::Tensor StepCache::Compare(const at::Tensor& signal) {
  if (!begun_) return {};
  const at::Tensor difference = MeanMagnitude(signal.sub(signal_));
  const double at_least = options_.rule == StepCacheRule::kTeaCache ? 1e-8 : 0;
  return difference.div(MeanMagnitude(signal_.clone()).add(at_least));
}

bool StepCache::Reuses(const at::Tensor& signal, const at::Tensor& difference) {
  reused_ = begun_ && !difference.is_meta() && IsNear(difference.item<double>());
  begun_ = true;
  if (!reused_ || options_.rule == StepCacheRule::kTeaCache) signal_.copy_(signal);
  return reused_;
}

void StepCache::Begin(const at::Tensor& image) { residual_.copy_(image); }

void StepCache::Keep(const at::Tensor& image) {
  at::Tensor residual = residual_;
  at::sub_out(residual, image, residual);
}

bool StepCache::IsNear(double difference) {
  // (0 / 0, where neither step's block adds anything, is near enough.)
  if (options_.rule == StepCacheRule::kFirstBlock) return !(difference > options_.threshold);
  double value = 0;
  for (const double coefficient : options_.polynomial) value = value * difference + coefficient;
  distance_ += std::abs(value);
  if (distance_ < options_.threshold) return true;
  distance_ = 0;
  return false;
}

}  // namespace ditserve
