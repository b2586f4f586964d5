#include "core/devices/host_addresses.h"

#include <sys/mman.h>

#include "absl/strings/str_cat.h"

namespace ditserve {
namespace {

constexpr int64_t kHugePageBytes = 2 << 20;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

absl::StatusOr<std::byte*> ReserveHostAddresses(int64_t bytes) {
  const int64_t mapped = bytes + kHugePageBytes - kHostPageBytes;
  void* const mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("the system refuses ", bytes, " bytes of addresses"));
  }
  auto* const first = static_cast<std::byte*>(mapping);
  const auto address = reinterpret_cast<intptr_t>(first);
  std::byte* const begin = first + (RoundUp(address, kHugePageBytes) - address);
  if (begin > first) munmap(first, begin - first);
  if (begin + bytes < first + mapped) munmap(begin + bytes, first + mapped - begin - bytes);
  madvise(begin, bytes, MADV_HUGEPAGE);  // A hint: without huge pages the memory works the same.
  return begin;
}

void ReleaseHostAddresses(std::byte* begin, int64_t bytes) { munmap(begin, bytes); }

absl::Status CommitHostMemory(std::byte* begin, int64_t bytes) {
  if (mprotect(begin, bytes, PROT_READ | PROT_WRITE) == 0) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the system refuses ", bytes, " bytes of memory"));
}

void DecommitHostMemory(std::byte* begin, int64_t bytes) {
  madvise(begin, bytes, MADV_DONTNEED);
  mprotect(begin, bytes, PROT_NONE);
}

}  // namespace ditserve
