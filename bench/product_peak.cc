// Measures what no product of matrices can exceed on this processor: all threads multiply and add registers by the
// fastest instruction that ditserve has for the arithmetic, with nothing to load or store. Prints FLOP a second, the
// best of some turns.
// usage: bench_product_peak float32|bfloat16
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/base/dtype.h"
#include "models/kernels/tile_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ditserve {
namespace {

constexpr int kTurns = 5;
constexpr absl::Duration kTurn = absl::Milliseconds(200);
constexpr int kRepeats = 4096;  // Between two looks at the clock.
constexpr int kSums = 12;  // Independent, and so as many as hide what an instruction takes. All fit into registers.

struct Instruction {
  float (*repeat)();  // What it returns keeps the compiler from leaving the sums out.
  double flop;        // Of a call of that.
};

// The compiler's vectors of four, whatever they become.
float RepeatPortably() {
  using Floats = float __attribute__((vector_size(16)));
  Floats sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = Floats{} + static_cast<float>(i);
  for (int n = 0; n < kRepeats; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * 0.5f + 1.0f;
  }
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  return sums[0][0];
}

#if defined(__x86_64__)

// What is multiplied is hidden from the compiler, which else would make additions of it; and sums that begin alike
// would be one.
__attribute__((target("avx2,fma"))) float RepeatAvx2() {
  __m256 x = _mm256_set1_ps(0.5f), sums[kSums];
  asm volatile("" : "+x"(x));
  for (int i = 0; i < kSums; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  for (int n = 0; n < kRepeats; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_fmadd_ps(x, x, sums[i]);
  }
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  return sums[0][0];
}

__attribute__((target("avx512f"))) float RepeatAvx512() {
  __m512 x = _mm512_set1_ps(0.5f), sums[kSums];
  asm volatile("" : "+v"(x));
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int n = 0; n < kRepeats; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_fmadd_ps(x, x, sums[i]);
  }
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  return sums[0][0];
}

__attribute__((target("avx512f,avx512bf16"))) float RepeatAvx512BFloat16() {
  __m512i x = _mm512_set1_epi32(0x3f003f00);  // Twice 0.5.
  __m512 sums[kSums];
  asm volatile("" : "+v"(x));
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int n = 0; n < kRepeats; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], __m512bh(x), __m512bh(x));
  }
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  return sums[0][0];
}

// Four of the tile unit's eight registers hold sums, as in products.
__attribute__((target("avx512f,amx-tile,amx-bf16"))) float RepeatAmx() {
  const TileScope scope(TileKernelsOf(Isa::kAmxBFloat16, DType::kBFloat16, DType::kBFloat16));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int n = 0; n < kRepeats; ++n) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return 0;
}

#endif

// Of a product and a sum in each of so many lanes, for so many sums.
constexpr double Flop(int lanes, int sums = kSums) { return 2.0 * lanes * sums * kRepeats; }

Instruction Fastest(DType arithmetic) {
#if defined(__x86_64__)
  const Isa isa = Isas().back();
  if (arithmetic == DType::kBFloat16) {
    if (isa == Isa::kAmxBFloat16) return {RepeatAmx, Flop(16 * 16 * 32, 4)};
    if (isa == Isa::kAvx512BFloat16) return {RepeatAvx512BFloat16, Flop(2 * 16)};
  }
  // Without such instructions bfloat16 is computed in float32.
  if (isa >= Isa::kAvx512) return {RepeatAvx512, Flop(16)};
  if (isa == Isa::kAvx2) return {RepeatAvx2, Flop(8)};
#endif
  static_cast<void>(arithmetic);
  return {RepeatPortably, Flop(4)};
}

// FLOP a second of all threads.
double Measure(const Instruction& instruction) {
  std::atomic<int64_t> calls = 0;
  const absl::Time begun = absl::Now(), end = begun + kTurn;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(std::thread::hardware_concurrency(), 1U); ++i) {
    threads.emplace_back([&] {
      volatile float last = 0;
      while (absl::Now() < end) {
        last = instruction.repeat();
        ++calls;
      }
      static_cast<void>(last);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return static_cast<double>(calls) * instruction.flop / absl::ToDoubleSeconds(absl::Now() - begun);
}

}  // namespace
}  // namespace ditserve

int main(int argc, char** argv) {
  using ditserve::DType;
  const std::optional<DType> arithmetic = ditserve::DTypeFromName(argc == 2 ? argv[1] : "");
  if (arithmetic != DType::kFloat32 && arithmetic != DType::kBFloat16) {
    std::fputs("usage: bench_product_peak float32|bfloat16\n", stderr);
    return 2;
  }
  const ditserve::Instruction instruction = ditserve::Fastest(*arithmetic);
  double best = 0;
  for (int i = 0; i < ditserve::kTurns; ++i) best = std::max(best, ditserve::Measure(instruction));
  std::printf("%.0f\n", best);
}
