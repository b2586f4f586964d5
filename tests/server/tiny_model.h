#ifndef DITSERVE_TESTS_SERVER_TINY_MODEL_H_
#define DITSERVE_TESTS_SERVER_TINY_MODEL_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/base/status_macros.h"
#include "ditserve/v1/transformer_service.pb.h"
#include "models/qwen_image_dit.h"
#include "server/engine/engine.h"
#include "server/engine/profile_catalogue.h"

namespace ditserve {

// A model of one small block, prompts of 8 numbers a token.
inline const QwenImageDiT& TinyModel() {
  static const QwenImageDiT* const model = [] {
    QwenImageDiTConfig config;
    config.num_layers = 1;
    config.num_attention_heads = 2;
    config.attention_head_dim = 16;
    config.axes_dims_rope = {4, 6, 6};
    config.joint_attention_dim = 8;
    return new QwenImageDiT(config);
  }();
  return *model;
}

inline ModelInfo TinyModelInfo(const std::string& name = "tiny", bool ready = true) {
  ModelInfo info;
  info.name = name;
  info.ready = ready;
  if (!ready) return info;
  info.model = &TinyModel();
  for (const ModuleSpec& module : TinyModel().modules()) {
    info.stored_dtypes.insert(info.stored_dtypes.end(), module.parameters.size(), DType::kBFloat16);
  }
  return info;
}

// Two profiles for a server that computes on the CPU.
inline ProfileCatalogue TinyCatalogue() {
  ProfileCatalogue catalogue;
  catalogue.target = {{"cpu"}, {"Linear", "RMSNorm"}};
  VramConfig disk;
  disk.offload_dtype = "disk";
  disk.computation_dtype = "bfloat16";
  disk.computation_device = "accelerator";
  VramConfig resident;
  resident.computation_dtype = "float32";
  resident.computation_device = "accelerator";
  catalogue.profiles.push_back(*ResolveProfile("disk", disk, 1.5, catalogue.target, "profiles.disk"));
  catalogue.profiles.back().description = "Weights rest on disk";
  catalogue.profiles.push_back(*ResolveProfile("resident", resident, {}, catalogue.target, "profiles.resident"));
  catalogue.default_profile = "disk";
  return catalogue;
}

template <typename T>
v1::Tensor MakeTensor(v1::Dtype dtype, std::initializer_list<int64_t> shape, const std::vector<T>& elements) {
  v1::Tensor tensor;
  tensor.set_dtype(dtype);
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  tensor.set_data(elements.data(), elements.size() * sizeof(T));
  return tensor;
}

// Float32, element i being i / 8.
inline v1::Tensor Ramp(std::initializer_list<int64_t> shape) {
  int64_t count = 1;
  for (int64_t length : shape) count *= length;
  std::vector<float> elements(static_cast<size_t>(count));
  for (size_t i = 0; i < elements.size(); ++i) elements[i] = static_cast<float>(i) / 8;
  return MakeTensor(v1::DTYPE_FLOAT32, shape, elements);
}

// A valid request: `batch` images of 32 x 16 pixels, prompts of 3 tokens.
inline v1::ForwardRequest TinyRequest(int64_t batch = 1) {
  v1::ForwardRequest request;
  *request.mutable_latents() = Ramp({batch, 16, 4, 2});
  *request.mutable_timestep() = Ramp({batch});
  *request.mutable_prompt_emb() = Ramp({batch, 3, 8});
  request.set_height(32);
  request.set_width(16);
  return request;
}

// Replaces element `index` of a tensor.
template <typename T>
void SetElement(v1::Tensor& tensor, size_t index, T element) {
  std::memcpy(tensor.mutable_data()->data() + index * sizeof(T), &element, sizeof(T));
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_SERVER_TINY_MODEL_H_
