#ifndef DITSERVE_TESTS_MODELS_KERNELS_ISA_NAME_H_
#define DITSERVE_TESTS_MODELS_KERNELS_ISA_NAME_H_

#include <gtest/gtest.h>

#include <string>

#include "models/kernels/tile_kernels.h"

namespace ditserve {

inline std::string NameOfIsa(const ::testing::TestParamInfo<Isa>& isa) {
  static constexpr const char* kNames[] = {"Portable", "Avx2", "Avx512", "Avx512BFloat16", "AmxBFloat16"};
  return kNames[static_cast<size_t>(isa.param)];
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_MODELS_KERNELS_ISA_NAME_H_
