// Times what the machine's first GPU moves from pinned host memory, piece by piece, each as large as a module's
// weights: from the first piece's being enqueued until the last one's event has passed. Prints a line of each way:
// "copy" of bfloat16, "cast" of float8 to bfloat16; the bytes of a piece, and bytes that left the host in a second. The
// first is "limit": one copy by CUDA's own calls, of memory that was allocated and registered as a whole.
#include <dlfcn.h>

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/base/status_macros.h"
#include "core/devices/device_module.h"

namespace ditserve {
namespace {

constexpr int64_t kMoved = int64_t{1} << 30;  // Bytes that leave the host in a turn.
constexpr int64_t kWidth = 3072;
constexpr int64_t kElements[] = {kWidth * 18432, kWidth * 12288,
                                 kWidth* kWidth};  // Of a block's three sizes of weights.
constexpr int kTurns = 3;

absl::StatusOr<std::byte*> Take(Device& device, Memory memory, int64_t bytes) {
  const int64_t granule = device.granule_bytes(memory);
  bytes = (bytes + granule - 1) / granule * granule;
  DITSERVE_ASSIGN_OR_RETURN(std::byte* const begin, device.ReserveAddresses(memory, bytes));
  DITSERVE_RETURN_IF_ERROR(device.Commit(memory, begin, bytes));
  if (IsHost(memory)) std::memset(begin, 0, static_cast<size_t>(bytes));
  return begin;
}

// Bytes a second, the best of the turns.
absl::StatusOr<double> Rate(Device& device, std::byte* from, DType dtype, std::byte* to, int64_t elements) {
  const int64_t pieces = std::max<int64_t>(kMoved / (elements * SizeOf(dtype)), 1);
  absl::Duration best = absl::InfiniteDuration();
  for (int turn = 0; turn < kTurns; ++turn) {
    const absl::Time begun = absl::Now();
    EventPtr last;
    for (int64_t i = 0; i < pieces; ++i) {
      const Conversion piece{{Memory::kHost, from, dtype}, {}, {device.memory(), to, DType::kBFloat16}, elements};
      DITSERVE_ASSIGN_OR_RETURN(last, device.Enqueue(piece, {}));
    }
    if (last != nullptr) DITSERVE_RETURN_IF_ERROR(last->Wait());
    best = std::min(best, absl::Now() - begun);
  }
  return static_cast<double>(pieces * elements * SizeOf(dtype)) / absl::ToDoubleSeconds(best);
}

// The runtime's function of this name; it is there with the device module, and only modules know CUDA's headers.
template <typename Function>
absl::StatusOr<Function*> OfRuntime(const char* name) {
  void* const runtime = dlopen("libcudart.so.13", RTLD_NOW | RTLD_NOLOAD);
  void* const function = runtime == nullptr ? nullptr : dlsym(runtime, name);
  if (function == nullptr) return absl::NotFoundError(absl::StrCat("no ", name, " in the CUDA runtime"));
  return reinterpret_cast<Function*>(function);
}

// Bytes a second of one copy that nothing cuts in pieces, the best of the turns.
absl::StatusOr<double> Limit() {
  constexpr int kToDevice = 1;  // cudaMemcpyHostToDevice.
  DITSERVE_ASSIGN_OR_RETURN(auto* const allocate_host, OfRuntime<int(void**, size_t)>("cudaMallocHost"));
  DITSERVE_ASSIGN_OR_RETURN(auto* const allocate, OfRuntime<int(void**, size_t)>("cudaMalloc"));
  DITSERVE_ASSIGN_OR_RETURN(auto* const copy, OfRuntime<int(void*, const void*, size_t, int)>("cudaMemcpy"));
  DITSERVE_ASSIGN_OR_RETURN(auto* const give_back_host, OfRuntime<int(void*)>("cudaFreeHost"));
  DITSERVE_ASSIGN_OR_RETURN(auto* const give_back, OfRuntime<int(void*)>("cudaFree"));
  void *from = nullptr, *to = nullptr;
  int error = allocate_host(&from, kMoved);
  if (error == 0) error = allocate(&to, kMoved);
  absl::Duration best = absl::InfiniteDuration();
  if (error == 0) std::memset(from, 0, kMoved);
  for (int turn = 0; error == 0 && turn < kTurns; ++turn) {
    const absl::Time begun = absl::Now();
    error = copy(to, from, kMoved, kToDevice);  // Of pinned memory: it is there when the call returns.
    best = std::min(best, absl::Now() - begun);
  }
  if (to != nullptr) give_back(to);
  if (from != nullptr) give_back_host(from);
  if (error != 0) return absl::InternalError(absl::StrCat("a copy by CUDA's own calls: error ", error));
  return static_cast<double>(kMoved) / absl::ToDoubleSeconds(best);
}

absl::Status Run() {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<Device> device, LoadCudaDevice(0));
  DITSERVE_ASSIGN_OR_RETURN(const double limit, Limit());
  std::printf("limit %" PRId64 " %.0f\n", kMoved, limit);
  DITSERVE_ASSIGN_OR_RETURN(std::byte* const from, Take(*device, Memory::kHost, 2 * kElements[0]));
  DITSERVE_ASSIGN_OR_RETURN(std::byte* const to, Take(*device, device->memory(), 2 * kElements[0]));
  for (const DType dtype : {DType::kBFloat16, DType::kFloat8E4M3}) {
    for (const int64_t elements : kElements) {
      DITSERVE_ASSIGN_OR_RETURN(const double rate, Rate(*device, from, dtype, to, elements));
      const int64_t bytes = elements * SizeOf(dtype);
      std::printf("%s %" PRId64 " %.0f\n", dtype == DType::kBFloat16 ? "copy" : "cast", bytes, rate);
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace ditserve

int main() {
  const absl::Status status = ditserve::Run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::fflush(stdout);
  std::_Exit(status.ok() ? EXIT_SUCCESS : EXIT_FAILURE);  // Memory and device go with the process.
}
