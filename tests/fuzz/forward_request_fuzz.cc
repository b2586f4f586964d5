// A request as it comes off the wire: it is refused for what the client got wrong, or what becomes of it is sound.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "server/rpc/request_decoder.h"
#include "tests/fuzz/require.h"
#include "tests/server/sound_call.h"
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

void DecodeAndCheck(const v1::ForwardRequest& request) {
  static const auto* const catalogue = new ProfileCatalogue(TinyCatalogue());
  static const auto* const models = new std::vector<ModelInfo>{TinyModelInfo()};
  const RequestDecoder decoder(kLimits, catalogue);
  const absl::StatusOr<DecodedForward> decoded = decoder.Decode(request, *models);
  Require(decoded.ok() ? CheckSound(*decoded, request, kLimits).ok() : IsRefusal(decoded.status()));
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
