#include "core/devices/host_addresses.h"

#include <sys/mman.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace ditserve {
namespace {

constexpr int64_t kHugePageBytes = 2 << 20;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// A hint: without huge pages the memory works the same.
void AdviseHugePages(std::byte* begin, int64_t bytes) { madvise(begin, bytes, MADV_HUGEPAGE); }

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
  AdviseHugePages(begin, bytes);
  return begin;
}

void ReleaseHostAddresses(std::byte* begin, int64_t bytes) { munmap(begin, bytes); }

absl::Status CommitHostMemory(std::byte* begin, int64_t bytes) {
  if (mprotect(begin, bytes, PROT_READ | PROT_WRITE) == 0) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the system refuses ", bytes, " bytes of memory"));
}

void PopulateHostMemory(std::byte* begin, int64_t bytes) {
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which headers of before Linux 5.14 don't have.
  if (madvise(begin, bytes, kPopulateWrite) == 0 || errno != EINVAL) return;  // What it lacks others tell.
  for (int64_t at = 0; at < bytes; at += kHostPageBytes) {
    volatile std::byte* const page = begin + at;
    *page = std::byte{0};
  }
}

// A fresh mapping, not only without pages: the kernel keeps what was moved here apart from its neighbours, and has a
// limit on how many mappings a process has.
void DecommitHostMemory(std::byte* begin, int64_t bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(begin, bytes, PROT_NONE, kFlags, -1, 0) == MAP_FAILED) {  // Too many mappings: at least the pages go.
    madvise(begin, bytes, MADV_DONTNEED);
    return;
  }
  AdviseHugePages(begin, bytes);
}

absl::Status MoveHostMemory(std::byte* from, std::byte* to, int64_t bytes) {
  // Nobody else may get the addresses that are left: they stay mapped.
  constexpr int kFlags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
  const bool moved = mremap(from, bytes, bytes, kFlags, to) != MAP_FAILED;
  DecommitHostMemory(from, bytes);
  // Before Linux 5.7, or with too many mappings, it costs what fresh memory does.
  return moved ? absl::OkStatus() : CommitHostMemory(to, bytes);
}

}  // namespace ditserve
