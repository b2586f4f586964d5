#include "models/denoising/guidance.h"

#include <ATen/ops/linalg_vector_norm.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"

namespace ditserve {
namespace {

at::Tensor LengthOfTokens(const at::Tensor& x) {
  return at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, /*keepdim=*/true);
}

}  // namespace

absl::StatusOr<bool> IsGuided(Numerics numerics, double scale, bool has_negative_prompt) {
  if (!std::isfinite(scale)) return FieldError("true_cfg_scale", absl::StrCat(scale, ", expected a finite number"));
  return has_negative_prompt && (numerics == Numerics::kDiffusers ? scale > 1 : scale != 1);
}

at::Tensor Guided(Numerics numerics, const at::Tensor& positive, const at::Tensor& negative, double scale) {
  at::Tensor combined = negative.add(positive.sub(negative).mul(scale));
  if (numerics == Numerics::kDiffSynth) return combined;
  return combined.mul(LengthOfTokens(positive).div(LengthOfTokens(combined)));
}

}  // namespace ditserve
