#ifndef DITSERVE_TESTS_SERVER_SOUND_CALL_H_
#define DITSERVE_TESTS_SERVER_SOUND_CALL_H_

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "server/rpc/request_decoder.h"
#include "tests/server/tiny_model.h"

namespace ditserve {

// Whether a tensor is all of a message's elements where they lie, and all of them finite.
inline bool IsSoundView(const at::Tensor& tensor, const v1::Tensor& message) {
  return tensor.is_contiguous() && tensor.nbytes() == message.data().size() &&
         tensor.const_data_ptr() == message.data().data() && at::isfinite(tensor).all().item<bool>();
}

// What must hold of the call that a decoder with `limits` makes of a request to the tiny model, whatever the request.
// Errors: Internal that names what does not.
inline absl::Status CheckSound(const DecodedForward& decoded, const v1::ForwardRequest& request,
                               const RequestLimits& limits) {
  const ForwardInputs& inputs = decoded.call.inputs;
  const auto is = [](const at::Tensor& tensor, const std::vector<int64_t>& shape) { return tensor.sizes() == shape; };
  const int64_t batch = inputs.latents.dim() == 4 ? inputs.latents.size(0) : 0;
  const int64_t tokens = inputs.prompt_emb.dim() == 3 ? inputs.prompt_emb.size(1) : 0;
  const int64_t height = request.height(), width = request.width();
  const at::Tensor& mask = inputs.prompt_emb_mask;
  const std::pair<const char*, bool> facts[] = {
      {"model", decoded.model == &TinyModel() && decoded.call.model == "tiny"},
      {"batch", batch >= 1 && batch <= limits.max_batch},
      {"sides", std::min(height, width) >= 16 && std::max(height, width) <= limits.max_side},
      {"latents.shape", is(inputs.latents, {batch, 16, height / 8, width / 8})},
      {"timestep.shape", is(inputs.timestep, {batch})},
      {"prompt_emb.shape", tokens >= 1 && is(inputs.prompt_emb, {batch, tokens, 8})},
      {"latents.data", IsSoundView(inputs.latents, request.latents())},
      {"timestep.data", IsSoundView(inputs.timestep, request.timestep())},
      {"prompt_emb.data", IsSoundView(inputs.prompt_emb, request.prompt_emb())},
      {"prompt_emb_mask", mask.defined() == request.has_prompt_emb_mask()},
      {"prompt_emb_mask.shape",
       !mask.defined() || (is(mask, {batch, tokens}) && absl::MakeConstSpan(request.prompt_emb_mask().shape()) ==
                                                            absl::MakeConstSpan(mask.sizes()))},
      {"prompt_emb_mask.data", !mask.defined() || mask.any(1).all().item<bool>()},
  };
  for (const auto& [what, holds] : facts) {
    if (!holds) return absl::InternalError(absl::StrCat("an unsound call was made: ", what));
  }
  return absl::OkStatus();
}

// Likewise of a loop.
inline absl::Status CheckSound(const DecodedForward& decoded, const v1::DenoiseRequest& request,
                               const RequestLimits& limits) {
  const ForwardInputs& inputs = decoded.call.inputs;
  if (!decoded.call.denoising || inputs.latents.dim() != 4)
    return absl::InternalError("an unsound call was made: no loop");
  const Denoising& loop = *decoded.call.denoising;
  const int64_t batch = inputs.latents.size(0);
  const int64_t rows = request.height() / 8, columns = request.width() / 8;
  const std::vector<float>& sigmas = loop.schedule.sigmas;
  // Of one for all, or one for each.
  const auto is_picture = [&](const at::Tensor& tensor, int64_t channels) {
    return !tensor.defined() || (tensor.scalar_type() == inputs.latents.scalar_type() &&
                                 (tensor.sizes() == at::IntArrayRef{1, channels, rows, columns} ||
                                  tensor.sizes() == at::IntArrayRef{batch, channels, rows, columns}) &&
                                 at::isfinite(tensor).all().item<bool>());
  };
  const std::vector<int64_t> tokens = ShapeOf(inputs, loop).text_tokens;
  const std::pair<const char*, bool> facts[] = {
      {"model", decoded.model == &TinyModel() && decoded.call.model == "tiny"},
      {"batch", batch >= 1 && batch <= limits.max_batch},
      {"sides", std::min(rows, columns) >= 2 && 8 * std::max(rows, columns) <= limits.max_side},
      {"latents.shape", inputs.latents.sizes() == at::IntArrayRef{batch, 16, rows, columns}},
      {"latents.data", loop.start != LoopStart::kLatents || at::isfinite(inputs.latents).all().item<bool>()},
      {"prompts", static_cast<int64_t>(tokens.size()) == (loop.guidance ? 2 : 1) * batch &&
                      *std::min_element(tokens.begin(), tokens.end()) >= 1},
      {"steps", loop.schedule.steps() >= 1 && loop.schedule.steps() <= 1000},
      {"sigmas", static_cast<int64_t>(sigmas.size()) == loop.schedule.steps() + 1 && sigmas.front() <= 1 &&
                     sigmas.back() == 0 && std::is_sorted(sigmas.rbegin(), sigmas.rend())},
      {"first_step", loop.first_step >= 0 && loop.steps_left() >= 1},
      {"latents_every", loop.latents_every >= 0},
      {"guidance", !loop.guidance || std::isfinite(loop.guidance->scale)},
      {"seeds", (loop.start == LoopStart::kLatents && !loop.image.defined()) || loop.seeds.size() == 1 ||
                    static_cast<int64_t>(loop.seeds.size()) == batch},
      {"image", (loop.image.defined() || loop.start != LoopStart::kImage) && is_picture(loop.image, 16)},
      {"mask", (loop.image.defined() || !loop.mask.defined()) && is_picture(loop.mask, 1)},
  };
  for (const auto& [what, holds] : facts) {
    if (!holds) return absl::InternalError(absl::StrCat("an unsound call was made: ", what));
  }
  return absl::OkStatus();
}

// Whether it is the client that is told to be wrong.
inline bool IsRefusal(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status) || absl::IsFailedPrecondition(status);
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_SERVER_SOUND_CALL_H_
