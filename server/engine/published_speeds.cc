#include "server/engine/published_speeds.h"

#include "absl/strings/str_cat.h"

namespace ditserve {
namespace {

struct Published {
  int capability;
  const char* gpu;
  int multiprocessors;
  double tera_flops_per_second;
  const char* source;
};

// Where only products of matrices are published, a pass is taken to reach 0.7 of their speed: where both are, it
// reaches 0.65 to 0.75. Of what NVIDIA's data sheets have of dense bfloat16 an H200's pass reaches 0.55 (of 989): where
// nothing else is published, so much.
constexpr Published kPublished[] = {
    {80, "an A100", 108, 164, "a forward of Qwen-Image-Edit at 2048x1366 in 2.295 s, nunchaku issue 899"},
    {86, "an A40", 84, 0.7 * 115, "0.7 of its products of matrices, zzc0721/torch-performance-test-data"},
    {89, "an L40S", 142, 130, "28 steps of FLUX.1-dev in 16 s, TheStageAI"},
    {90, "an H200", 132, 544, "100 forwards of Qwen-Image in 12.65 s, SGLang pull request 36680"},
    {100, "a B200", 148, 0.55 * 2250, "0.55 of its dense bfloat16 in NVIDIA's data sheet, as an H200 reaches"},
    {120, "an RTX 5090", 170, 0.7 * 208, "0.7 of its products of matrices, zzc0721/torch-performance-test-data"},
};

}  // namespace

std::optional<PublishedSpeed> PublishedSpeedOf(int capability, int multiprocessors) {
  for (const Published& published : kPublished) {
    if (published.capability != capability) continue;
    PublishedSpeed speed;
    speed.flops_per_second = published.tera_flops_per_second * 1e12 * multiprocessors / published.multiprocessors;
    speed.source =
        absl::StrCat(published.gpu, " of ", published.multiprocessors, " multiprocessors: ", published.source);
    return speed;
  }
  return std::nullopt;
}

}  // namespace ditserve
