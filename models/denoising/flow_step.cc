#include "models/denoising/flow_step.h"

#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>

namespace ditserve {
namespace {

// Factors. A tensor without dimensions leaves the dtype of what it is multiplied with. LibTorch computes with its
// float32 where it comes second, v * s; where it comes first, s * v, it rounds it to that dtype before. Which one a
// reference wrote shows in the bits.
at::Tensor Exact(float value) { return at::scalar_tensor(value, at::kFloat); }
at::Tensor Rounded(float value, at::ScalarType dtype) { return Exact(value).to(dtype); }

at::Tensor Mix(const at::Tensor& outside, const at::Tensor& inside, const at::Tensor& mask) {
  return mask.neg().add(1).mul(outside).add(mask.mul(inside));
}

}  // namespace

at::Tensor ModelTimestep(float timestep, int64_t batch, at::ScalarType dtype) {
  return at::full({batch}, timestep, at::kFloat).to(dtype).div(1000);
}

at::Tensor NoisedImage(Numerics numerics, const at::Tensor& image, const at::Tensor& noise, float sigma) {
  const at::ScalarType dtype = noise.scalar_type();
  const at::Tensor s = Rounded(sigma, dtype);
  const at::Tensor rest = numerics == Numerics::kDiffusers ? s.neg().add(1) : Rounded(1 - sigma, dtype);
  return s.mul(noise).add(rest.mul(image));
}

at::Tensor FlowStep(Numerics numerics, const FlowSchedule& schedule, int64_t step, const at::Tensor& latents,
                    const at::Tensor& velocity, const Inpainting* inpainting) {
  const size_t i = static_cast<size_t>(step);
  const float sigma = schedule.sigmas.at(i), next = schedule.sigmas.at(i + 1);
  if (numerics == Numerics::kDiffSynth) {
    at::Tensor v = velocity;
    if (inpainting != nullptr) v = Mix(latents.sub(inpainting->image).div(Exact(sigma)), v, inpainting->mask);
    return latents.add(v.mul(Exact(next - sigma)));
  }
  // (It adds in float32 and rounds the sum, which is what adding in a narrower dtype does too.)
  at::Tensor x = latents.add(velocity.mul(Rounded(next - sigma, velocity.scalar_type())));
  if (inpainting == nullptr) return x;
  return Mix(NoisedImage(numerics, inpainting->image, inpainting->noise, next), x, inpainting->mask);
}

}  // namespace ditserve
