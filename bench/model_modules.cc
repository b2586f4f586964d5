// Prints of what the real model consists: first the bytes of activations of a pass at 1024x1024 with a prompt of 5
// tokens on a GPU that multiplies in bfloat16, and of one in float8; then each module in execution order, as its path
// and of its weight, then of its bias, the elements and those that a pass reads.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "core/storage/model_weights.h"
#include "models/qwen_image_dit.h"

namespace ditserve {
namespace {

void Run() {
  const QwenImageDiT model{QwenImageDiTConfig()};
  for (const at::ScalarType arithmetic : {at::kBFloat16, at::kFloat8_e4m3fn}) {
    std::printf("%lld ", static_cast<long long>(model.ActivationPeakBytes({1024, 1024, {5}}, arithmetic, at::kCUDA)));
  }
  std::puts("");
  const std::vector<ModuleIndex>& unused = model.unused_modules();
  for (size_t i = 0; i < model.modules().size(); ++i) {
    const bool used = std::find(unused.begin(), unused.end(), static_cast<ModuleIndex>(i)) == unused.end();
    std::printf("%s", model.modules()[i].path.c_str());
    for (const ParameterSpec& parameter : model.modules()[i].parameters) {
      std::printf(" %lld %lld", static_cast<long long>(ElementCount(parameter.shape)),
                  used ? static_cast<long long>(ElementCount(parameter.read_shape())) : 0LL);
    }
    std::puts("");
  }
}

}  // namespace
}  // namespace ditserve

int main() { ditserve::Run(); }
