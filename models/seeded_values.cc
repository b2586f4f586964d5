#include "models/seeded_values.h"

namespace ditserve {
namespace {

uint64_t Mix(uint64_t bits) {  // splitmix64's finalizer.
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

uint64_t HashName(absl::string_view name) {  // FNV-1a.
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace

void FillSeeded(uint64_t seed, absl::string_view name, int64_t begin, int64_t count, float mean, float deviation,
                float* values) {
  const uint64_t stream = Mix(seed ^ HashName(name));
  const float scale = deviation / 37837.0f;  // The deviation of the sum.
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = Mix(stream + static_cast<uint64_t>(begin + i) * 0x9e3779b97f4a7c15u);
    const auto sum =
        static_cast<int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
    const float product = static_cast<float>(sum - 131070) * scale;
    values[i] = mean + product;
  }
}

}  // namespace ditserve
