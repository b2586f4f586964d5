#include "models/kernels/tile_kernels.h"

#include <array>
#include <memory>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ditserve {
namespace {

#if defined(__x86_64__)
// clang 14 has no __builtin_cpu_supports for it.
bool HasF16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Linux saves the tile unit's registers only for processes that have asked.
bool MayUseAmxBFloat16() {
  constexpr unsigned kBFloat16 = 1U << 22, kTile = 1U << 24;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA.
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBFloat16) != 0 && (d & kTile) != 0 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

struct alignas(64) Scratch {
  std::array<float, kScratchFloats> floats;
};

// Uninitialized: pages count when they are used.
thread_local std::unique_ptr<Scratch> thread_scratch(new Scratch);

}  // namespace

float* ThreadScratch() { return thread_scratch->floats.data(); }

const std::vector<Isa>& Isas() {
  static const auto& isas = *new std::vector<Isa>([] {
    std::vector<Isa> found = {Isa::kPortable};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c()) {
      found.push_back(Isa::kAvx2);
    }
    if (__builtin_cpu_supports("avx512f")) found.push_back(Isa::kAvx512);
    if (__builtin_cpu_supports("avx512bf16")) {
      found.push_back(Isa::kAvx512BFloat16);
      if (MayUseAmxBFloat16()) found.push_back(Isa::kAmxBFloat16);
    }
#endif
    return found;
  }());
  return isas;
}

const TileKernels& TileKernelsOf(Isa isa, DType arithmetic, DType weights) {
#if defined(__x86_64__)
  if (isa == Isa::kAmxBFloat16 && arithmetic == DType::kBFloat16) return AmxBFloat16TileKernels();
  if (isa == Isa::kAvx512BFloat16 && arithmetic == DType::kBFloat16) return Avx512BFloat16TileKernels();
  if (isa >= Isa::kAvx512) return Avx512TileKernels(arithmetic, weights);
  if (isa == Isa::kAvx2) return Avx2TileKernels(arithmetic, weights);
#endif
  static_cast<void>(isa);
  return PortableTileKernels(arithmetic, weights);
}

}  // namespace ditserve
