#ifndef DITSERVE_MODELS_SEEDED_VALUES_H_
#define DITSERVE_MODELS_SEEDED_VALUES_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace ditserve {

// Writes elements [begin, begin + count) of the tensor `name` of made-up values: mean + deviation * n, n roughly
// standard normal. Every element depends on seed, name and position alone and is the same bits on every machine:
// n is the sum of the four 16-bit halves of splitmix64(splitmix64(seed xor fnv1a(name)) + position * golden ratio),
// less 131070, over 37837.
void FillSeeded(uint64_t seed, absl::string_view name, int64_t begin, int64_t count, float mean, float deviation,
                float* values);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_SEEDED_VALUES_H_
