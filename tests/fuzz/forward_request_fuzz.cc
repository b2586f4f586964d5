// A request as it comes off the wire: it is refused for what the client got wrong, or what becomes of it is sound.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "server/rpc/request_decoder.h"
#include "tests/fuzz/require.h"
#include "tests/server/tiny_model.h"

namespace ditserve {
namespace {

constexpr RequestLimits kLimits = {.max_batch = 4, .max_side = 64};

// A valid request, without the fields that `dropped` has a bit of, with the bytes' fields in their place: most
// mutations of a whole request end at its first field.
bool Merge(uint8_t dropped, const std::string& bytes, v1::ForwardRequest& request) {
  request = TinyRequest(2);
  if (dropped & 1) request.clear_latents();
  if (dropped & 2) request.clear_timestep();
  if (dropped & 4) request.clear_prompt_emb();
  if (dropped & 8) request.clear_height();
  if (dropped & 16) request.clear_width();
  return request.MergeFromString(bytes);
}

// That the tensor's elements are the message's, all of them.
void CheckView(const at::Tensor& tensor, const v1::Tensor& message) {
  Require(tensor.is_contiguous() && tensor.nbytes() == message.data().size());
  Require(tensor.const_data_ptr() == message.data().data());
}

void CheckSound(const DecodedForward& decoded, const v1::ForwardRequest& request) {
  const ForwardInputs& inputs = decoded.call.inputs;
  Require(decoded.model == &TinyModel() && decoded.call.model == "tiny");
  Require(inputs.latents.dim() == 4 && inputs.timestep.dim() == 1 && inputs.prompt_emb.dim() == 3);
  const int64_t batch = inputs.latents.size(0);
  Require(batch >= 1 && batch <= kLimits.max_batch);
  Require(inputs.latents.size(2) * 8 <= kLimits.max_side && inputs.latents.size(3) * 8 <= kLimits.max_side);
  Require(inputs.timestep.size(0) == batch && inputs.prompt_emb.size(0) == batch);
  Require(inputs.prompt_emb.size(1) >= 1 && inputs.prompt_emb.size(2) == TinyModel().config().joint_attention_dim);
  CheckView(inputs.latents, request.latents());
  CheckView(inputs.timestep, request.timestep());
  CheckView(inputs.prompt_emb, request.prompt_emb());
  Require(inputs.prompt_emb_mask.defined() == request.has_prompt_emb_mask());
  if (!inputs.prompt_emb_mask.defined()) return;
  Require(inputs.prompt_emb_mask.sizes() == inputs.prompt_emb.sizes().slice(0, 2));
}

void DecodeAndCheck(const v1::ForwardRequest& request) {
  static const auto* const catalogue = new ProfileCatalogue(TinyCatalogue());
  static const auto* const models = new std::vector<ModelInfo>{TinyModelInfo()};
  const RequestDecoder decoder(kLimits, catalogue);
  const absl::StatusOr<DecodedForward> decoded = decoder.Decode(request, *models);
  if (decoded.ok()) {
    CheckSound(*decoded, request);
    return;
  }
  const absl::Status& status = decoded.status();
  Require(absl::IsInvalidArgument(status) || absl::IsNotFound(status) || absl::IsFailedPrecondition(status));
}

}  // namespace
}  // namespace ditserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  ditserve::v1::ForwardRequest request;
  if (ditserve::Merge(data[0], bytes, request)) ditserve::DecodeAndCheck(request);
  return 0;
}
