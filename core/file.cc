#include "core/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace ditserve {
namespace {

constexpr int kTries = 3;

std::string ErrorText(int error) {
  char buffer[128];
  return strerror_r(error, buffer, sizeof buffer);
}

}  // namespace

ssize_t FileCalls::Read(int descriptor, void* data, size_t size, off_t offset) const {
  return pread(descriptor, data, size, offset);
}

int FileCalls::Stat(int descriptor, struct stat* status) const { return fstat(descriptor, status); }

const FileCalls& FileCalls::System() {
  static const FileCalls calls;
  return calls;
}

absl::StatusOr<std::unique_ptr<File>> File::Open(const std::string& path, const FileCalls& calls) {
  auto file = std::unique_ptr<File>(new File(std::filesystem::path(path).filename().string(), calls));
  // Non-blocking, so that opening a pipe does not wait for a writer.
  file->buffered_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file->buffered_ < 0) {
    const std::string message = absl::StrCat(file->name_, ": ", ErrorText(errno));
    return errno == ENOENT ? absl::NotFoundError(message) : absl::UnavailableError(message);
  }
  struct stat status;
  if (calls.Stat(file->buffered_, &status) != 0) {
    return absl::UnavailableError(absl::StrCat(file->name_, ": ", ErrorText(errno)));
  }
  if (!S_ISREG(status.st_mode)) return absl::InvalidArgumentError(absl::StrCat(file->name_, ": not a regular file"));
  file->size_bytes_ = status.st_size;
  file->modified_ = status.st_mtim;
  // The same inode, whatever happens to the path meanwhile.
  file->direct_ = open(absl::StrCat("/proc/self/fd/", file->buffered_).c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  return file;
}

File::~File() {
  if (buffered_ >= 0) close(buffered_);
  if (direct_ >= 0) close(direct_);
}

absl::Status File::ReadAt(int64_t offset, absl::Span<std::byte> target) const {
  const int64_t size = static_cast<int64_t>(target.size());
  DITSERVE_RETURN_IF_ERROR(Read(buffered_, offset, target.data(), size, size));
  return CheckGeneration();
}

absl::StatusOr<absl::Span<const std::byte>> File::ReadDirect(int64_t offset, int64_t size,
                                                             absl::Span<std::byte> slot) const {
  const int64_t begin = offset / kAlignment * kAlignment;
  const int64_t skipped = offset - begin;
  const int64_t aligned = (skipped + size + kAlignment - 1) / kAlignment * kAlignment;
  if (direct_ >= 0) {
    // The last block may end early, with the file.
    DITSERVE_RETURN_IF_ERROR(Read(direct_, begin, slot.data(), aligned, skipped + size));
  } else {
    DITSERVE_RETURN_IF_ERROR(Read(buffered_, begin, slot.data(), skipped + size, skipped + size));
    posix_fadvise(buffered_, begin, aligned, POSIX_FADV_DONTNEED);  // A hint: the page cache is not ours to fill.
  }
  DITSERVE_RETURN_IF_ERROR(CheckGeneration());
  return absl::Span<const std::byte>(slot.data() + skipped, static_cast<size_t>(size));
}

absl::Status File::Read(int descriptor, int64_t offset, std::byte* target, int64_t size, int64_t needed) const {
  int64_t done = 0;
  int failures = 0;
  while (done < needed) {
    const ssize_t got = calls_.Read(descriptor, target + done, static_cast<size_t>(size - done), offset + done);
    if (got > 0) {
      const int64_t before = done;
      done += got;
      // A direct read must go on at a block's boundary.
      if (descriptor == direct_ && done < needed) done -= done % kAlignment;
      if (done == before && ++failures == kTries) {
        return absl::UnavailableError(absl::StrCat(name_, ": short reads at byte ", offset + done));
      }
    } else if (got == 0) {
      return absl::DataLossError(absl::StrCat(name_, ": the file ends at byte ", offset + done, ", it had ",
                                              size_bytes_, " bytes when it was opened"));
    } else if (errno != EINTR && ++failures == kTries) {
      return absl::UnavailableError(absl::StrCat(name_, ": reading failed ", kTries, " times: ", ErrorText(errno)));
    }
  }
  return absl::OkStatus();
}

absl::Status File::CheckGeneration() const {
  struct stat status;
  if (calls_.Stat(buffered_, &status) != 0) {
    return absl::UnavailableError(absl::StrCat(name_, ": ", ErrorText(errno)));
  }
  const auto lost = [this](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(name_, ": the file was ", what, " since the model was loaded"));
  };
  if (status.st_nlink == 0) return lost("removed or replaced");
  if (status.st_size != size_bytes_) return lost("cut or extended");
  if (status.st_mtim.tv_sec != modified_.tv_sec || status.st_mtim.tv_nsec != modified_.tv_nsec)
    return lost("rewritten");
  return absl::OkStatus();
}

}  // namespace ditserve
