#include "client/ditctl/inputs.h"

#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/ditctl/tensor_file.h"
#include "client/ditctl/tensors.h"
#include "core/base/status_macros.h"
#include "core/storage/safetensors.h"

namespace ditserve::ditctl {
namespace {

constexpr int64_t kLatentChannels = 16;
constexpr int64_t kPixelsPerLatent = 8;
constexpr int64_t kPromptChannels = 3584;
constexpr int64_t kDefaultPixels = 1024;
// Wider than any server takes.
constexpr int64_t kMaxPixels = 1 << 16;
constexpr int64_t kMaxItems = 1 << 16;

using Tensors = std::map<std::string, v1::Tensor>;

absl::Status CheckSizes(const InputOptions& options) {
  for (const auto& [flag, value, max] :
       {std::tuple("height", options.height.value_or(kDefaultPixels), kMaxPixels),
        std::tuple("width", options.width.value_or(kDefaultPixels), kMaxPixels),
        std::tuple("batch", options.batch, kMaxItems), std::tuple("prompt-tokens", options.prompt_tokens, kMaxItems)}) {
    if (value < 1 || value > max) {
      return absl::InvalidArgumentError(absl::StrCat("--", flag, ": expected 1 to ", max, ", found ", value));
    }
  }
  if (options.timestep && options.timestep_file) {
    return absl::InvalidArgumentError("give either --timestep or --timestep-file");
  }
  return absl::OkStatus();
}

absl::StatusOr<DType> InputDType(const std::string& name) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    if (Name(dtype) == name) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("--dtype: expected bfloat16, float16 or float32, found '", name, "'"));
}

// The tensors that files give.
absl::StatusOr<Tensors> ReadFiles(const InputOptions& options) {
  Tensors tensors;
  if (options.inputs) {
    DITSERVE_ASSIGN_OR_RETURN(tensors,
                              ReadTensors(*options.inputs, {"latents", "timestep", "prompt_emb", "prompt_emb_mask"}));
  }
  for (const auto& [name, file] :
       {std::pair("latents", options.latents), std::pair("timestep", options.timestep_file),
        std::pair("prompt_emb", options.prompt_emb), std::pair("prompt_emb_mask", options.prompt_emb_mask)}) {
    if (!file) continue;
    DITSERVE_ASSIGN_OR_RETURN(tensors[name], ReadTensor(*file, name));
  }
  if (options.timestep) tensors.erase("timestep");
  return tensors;
}

// Standard normal values, if they fit into a message.
absl::StatusOr<v1::Tensor> MakeUp(const InputOptions& options, const std::string& name,
                                  const std::vector<int64_t>& shape, DType dtype) {
  const std::optional<int64_t> bytes = TensorBytes(shape, dtype);
  if (bytes && *bytes <= kMaxMessageBytes) {
    return SeededTensor(static_cast<uint64_t>(options.seed), name, shape, dtype);
  }
  return absl::InvalidArgumentError(absl::StrCat(name, " [", absl::StrJoin(shape, ", "), "] in ", Name(dtype),
                                                 " would exceed the 2 GiB that a message can hold"));
}

// Pixels along dimension `dimension` of the latents.
int64_t Pixels(const std::optional<int64_t>& given, const Tensors& tensors, int dimension) {
  if (given) return *given;
  const auto latents = tensors.find("latents");
  const bool known = latents != tensors.end() && latents->second.shape_size() == 4;
  return known ? latents->second.shape(dimension) * kPixelsPerLatent : kDefaultPixels;
}

}  // namespace

void AddInputFlags(InputOptions& options, CLI::App& app) {
  AddFlag(app, "height", "PIXELS", "default: as the latents' file has it, else 1024", &options.height);
  AddFlag(app, "width", "PIXELS", "default: as the latents' file has it, else 1024", &options.width);
  AddFlag(app, "batch", "N", "images, for made-up inputs (default 1)", &options.batch);
  AddFlag(app, "prompt-tokens", "N", "for made-up inputs (default 5)", &options.prompt_tokens);
  AddFlag(app, "timestep", "T", "0 to 1, a pipeline's divided by 1000 (default 0)", &options.timestep);
  AddFlag(app, "seed", "S", "decides made-up inputs (default 0)", &options.seed);
  AddFlag(app, "dtype", "DTYPE", "of made-up inputs: bfloat16 (default), float16, float32", &options.dtype);
  AddFlag(app, "inputs", "FILE", ".safetensors with latents, timestep, prompt_emb, prompt_emb_mask", &options.inputs);
  AddFlag(app, "latents", "FILE", ".npy or .safetensors", &options.latents);
  AddFlag(app, "timestep-file", "FILE", ".npy or .safetensors", &options.timestep_file);
  AddFlag(app, "prompt-emb", "FILE", ".npy or .safetensors", &options.prompt_emb);
  AddFlag(app, "prompt-emb-mask", "FILE", ".npy or .safetensors", &options.prompt_emb_mask);
}

absl::Status FillInputs(const InputOptions& options, v1::ForwardRequest& request) {
  DITSERVE_RETURN_IF_ERROR(CheckSizes(options));
  DITSERVE_ASSIGN_OR_RETURN(const DType dtype, InputDType(options.dtype));
  DITSERVE_ASSIGN_OR_RETURN(Tensors tensors, ReadFiles(options));
  request.set_height(Pixels(options.height, tensors, 2));
  request.set_width(Pixels(options.width, tensors, 3));
  if (!tensors.contains("latents")) {
    const std::vector<int64_t> shape = {options.batch, kLatentChannels, request.height() / kPixelsPerLatent,
                                        request.width() / kPixelsPerLatent};
    DITSERVE_ASSIGN_OR_RETURN(tensors["latents"], MakeUp(options, "latents", shape, dtype));
  }
  const v1::Tensor& latents = tensors["latents"];
  const int64_t batch = latents.shape_size() > 0 ? latents.shape(0) : options.batch;
  if (!tensors.contains("prompt_emb")) {
    DITSERVE_ASSIGN_OR_RETURN(tensors["prompt_emb"],
                              MakeUp(options, "prompt_emb", {batch, options.prompt_tokens, kPromptChannels}, dtype));
  }
  if (!tensors.contains("timestep")) {
    tensors["timestep"] = ConstantTensor(static_cast<float>(options.timestep.value_or(0)), {batch}, dtype);
  }
  *request.mutable_latents() = std::move(tensors["latents"]);
  *request.mutable_timestep() = std::move(tensors["timestep"]);
  *request.mutable_prompt_emb() = std::move(tensors["prompt_emb"]);
  const auto mask = tensors.find("prompt_emb_mask");
  if (mask != tensors.end()) *request.mutable_prompt_emb_mask() = std::move(mask->second);
  if (request.ByteSizeLong() <= static_cast<size_t>(kMaxMessageBytes)) return absl::OkStatus();
  return absl::InvalidArgumentError("the inputs would exceed the 2 GiB that a message can hold");
}

}  // namespace ditserve::ditctl
