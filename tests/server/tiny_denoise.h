#ifndef DITSERVE_TESTS_SERVER_TINY_DENOISE_H_
#define DITSERVE_TESTS_SERVER_TINY_DENOISE_H_

#include <vector>

#include "ditserve/v1/denoise_service.pb.h"
#include "tests/server/tiny_model.h"

namespace ditserve {

// Two steps of one image, guided, from noise.
inline v1::DenoiseRequest TinyDenoise() {
  v1::DenoiseRequest request;
  request.set_height(32);
  request.set_width(16);
  request.mutable_schedule()->set_steps(2);
  request.mutable_noise()->add_seeds(7);
  request.mutable_noise()->set_dtype(v1::DTYPE_FLOAT32);
  const auto filled = [](int64_t tokens, float value) {
    return MakeTensor(v1::DTYPE_FLOAT32, {1, tokens, 8}, std::vector<float>(static_cast<size_t>(8 * tokens), value));
  };
  *request.mutable_prompt()->mutable_emb() = filled(3, 0.5f);
  *request.mutable_negative_prompt()->mutable_emb() = filled(2, -0.5f);
  return request;
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_SERVER_TINY_DENOISE_H_
