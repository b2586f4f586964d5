// As forward_request_fuzz.cc, a request for a whole loop.

#include <google/protobuf/stubs/logging.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "server/rpc/request_decoder.h"
#include "tests/fuzz/require.h"
#include "tests/server/sound_call.h"
#include "tests/server/tiny_denoise.h"

namespace ditserve {
namespace {

constexpr RequestLimits kLimits = {.max_batch = 4, .max_side = 64};

// A valid request, without the fields that `dropped` has a bit of or with those that it adds, with the bytes' fields in
// their place.
bool Merge(uint8_t dropped, const std::string& bytes, v1::DenoiseRequest& request) {
  request = TinyDenoise();
  if (dropped & 1) request.clear_prompt();
  if (dropped & 2) request.clear_negative_prompt();
  if (dropped & 4) request.clear_schedule();
  if (dropped & 8) request.clear_noise();
  if (dropped & 16) *request.mutable_latents() = Ramp({1, 16, 4, 2});
  if (dropped & 32) *request.mutable_image() = Ramp({1, 16, 4, 2});
  if (dropped & 64) *request.mutable_mask() = Ramp({1, 1, 4, 2});
  return request.MergeFromString(bytes);
}

void DecodeAndCheck(const v1::DenoiseRequest& request) {
  static const auto* const catalogue = new ProfileCatalogue(TinyCatalogue());
  static const auto* const models = new std::vector<ModelInfo>{TinyModelInfo()};
  const RequestDecoder decoder(kLimits, catalogue);
  const absl::StatusOr<DecodedForward> decoded = decoder.DecodeDenoise(request, *models);
  Require(decoded.ok() ? CheckSound(*decoded, request, kLimits).ok() : IsRefusal(decoded.status()));
}

}  // namespace
}  // namespace ditserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const google::protobuf::LogSilencer no_word_of_malformed_strings;
  ditserve::v1::DenoiseRequest request;
  if (ditserve::Merge(data[0], bytes, request)) ditserve::DecodeAndCheck(request);
  return 0;
}
