// Prints of what the real model consists: first the bytes of activations of a pass at 1024x1024 with a prompt of 5
// tokens on a GPU that multiplies in bfloat16, and of one in float8; then each module in execution order, as its path
// and the elements of its weight and bias, with "unused" behind those that a pass does without.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

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
    std::printf("%s", model.modules()[i].path.c_str());
    for (const ParameterSpec& parameter : model.modules()[i].parameters) {
      int64_t elements = 1;
      for (const int64_t length : parameter.shape) elements *= length;
      std::printf(" %lld", static_cast<long long>(elements));
    }
    const bool used = std::find(unused.begin(), unused.end(), static_cast<ModuleIndex>(i)) == unused.end();
    std::puts(used ? "" : " unused");
  }
}

}  // namespace
}  // namespace ditserve

int main() { ditserve::Run(); }
