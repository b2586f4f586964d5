#include "core/storage/file.h"

#include <fcntl.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

constexpr int kTries = 3;  // Of a read that the disk fails.
constexpr absl::Duration kFirstPause = absl::Milliseconds(50);
constexpr int kPauseGrowth = 4;

}  // namespace

ssize_t FileCalls::Read(int descriptor, void* data, size_t size, off_t offset) const {
  return pread(descriptor, data, size, offset);
}

int FileCalls::Stat(int descriptor, struct stat* status) const { return fstat(descriptor, status); }

void FileCalls::Pause(absl::Duration pause) const { absl::SleepFor(pause); }

const FileCalls& FileCalls::System() {
  static const FileCalls calls;
  return calls;
}

absl::StatusOr<std::unique_ptr<File>> File::Open(const std::string& path, const FileCalls& calls) {
  auto file = std::unique_ptr<File>(new File(std::filesystem::path(path).filename().string(), calls));
  // Non-blocking, so that opening a pipe does not wait for a writer.
  file->buffered_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file->buffered_ < 0) return file->Failure(errno);
  // The same inode, whatever happens to the path meanwhile.
  const std::string inode = absl::StrCat("/proc/self/fd/", file->buffered_);
  file->watch_ = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  if (file->watch_ >= 0 && inotify_add_watch(file->watch_, inode.c_str(), IN_MODIFY) < 0) {
    close(std::exchange(file->watch_, -1));
  }
  struct stat status;
  if (calls.Stat(file->buffered_, &status) != 0) return file->Failure(errno);
  if (!S_ISREG(status.st_mode)) return absl::InvalidArgumentError(absl::StrCat(file->name_, ": not a regular file"));
  file->size_bytes_ = status.st_size;
  file->modified_ = status.st_mtim;
  file->direct_ = open(inode.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (file->direct_ >= 0 && !file->ReadsDirectly()) close(std::exchange(file->direct_, -1));
  return file;
}

File::~File() {
  if (buffered_ >= 0) close(buffered_);
  if (direct_ >= 0) close(direct_);
  if (watch_ >= 0) close(watch_);
}

absl::Status File::ReadAt(int64_t offset, absl::Span<std::byte> target) const {
  const int64_t size = static_cast<int64_t>(target.size());
  return Read(buffered_, offset, target.data(), size, size);
}

absl::StatusOr<absl::Span<const std::byte>> File::ReadDirect(int64_t offset, int64_t size,
                                                             absl::Span<std::byte> slot) const {
  assert(reinterpret_cast<uintptr_t>(slot.data()) % kAlignment == 0);
  const int64_t begin = offset / kAlignment * kAlignment;
  const int64_t needed = offset - begin + size;
  const int64_t aligned = (needed + kAlignment - 1) / kAlignment * kAlignment;
  assert(static_cast<int64_t>(slot.size()) >= aligned);
  if (direct_ >= 0) {
    // The last block may end early, with the file.
    DITSERVE_RETURN_IF_ERROR(Read(direct_, begin, slot.data(), aligned, needed));
  } else {
    DITSERVE_RETURN_IF_ERROR(Read(buffered_, begin, slot.data(), needed, needed));
    posix_fadvise(buffered_, begin, aligned, POSIX_FADV_DONTNEED);  // A hint: the page cache is not ours to fill.
  }
  return slot.subspan(static_cast<size_t>(offset - begin), static_cast<size_t>(size));
}

absl::Status File::Read(int descriptor, int64_t offset, std::byte* target, int64_t size, int64_t needed) const {
  absl::Status read = ReadOnce(descriptor, offset, target, size, needed);
  // Afterwards, so that nothing written meanwhile passes; and first, as it explains what the read could not.
  DITSERVE_RETURN_IF_ERROR(CheckGeneration());
  return read;
}

absl::Status File::ReadOnce(int descriptor, int64_t offset, std::byte* target, int64_t size, int64_t needed) const {
  int64_t done = 0;
  int failures = 0;
  absl::Duration pause = kFirstPause;
  while (done < needed) {
    const ssize_t got = calls_.Read(descriptor, target + done, static_cast<size_t>(size - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      if (++failures == kTries) return Failure(errno);
      calls_.Pause(pause);
      pause *= kPauseGrowth;
      continue;
    }
    const int64_t before = done;
    done += got;
    if (done >= needed) break;
    if (descriptor == direct_) done -= done % kAlignment;  // A direct read goes on at a block's boundary.
    if (done == before) {
      return absl::DataLossError(
          absl::StrCat(name_, ": the file ends at byte ", offset + before + got, ", expected ", size_bytes_));
    }
  }
  return absl::OkStatus();
}

absl::Status File::CheckGeneration() const {
  struct stat status;
  if (calls_.Stat(buffered_, &status) != 0) return Failure(errno);
  const auto lost = [this](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(name_, ": the file was ", what, " since it was opened"));
  };
  if (status.st_nlink == 0) return lost("removed or replaced");
  if (status.st_size != size_bytes_) return lost("cut or extended");
  const struct timespec& now = status.st_mtim;
  if (now.tv_sec != modified_.tv_sec || now.tv_nsec != modified_.tv_nsec || Modified()) return lost("rewritten");
  return absl::OkStatus();
}

bool File::Modified() const {
  alignas(inotify_event) char events[sizeof(inotify_event)];  // Of a watched file: they have no names.
  if (watch_ >= 0 && read(watch_, events, sizeof events) > 0) written_ = true;
  return written_;
}

absl::Status File::Failure(int error) const {
  char buffer[128];
  const std::string message = absl::StrCat(name_, ": ", strerror_r(error, buffer, sizeof buffer));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case ESTALE:  // A network file system's word for a replaced file.
      return absl::DataLossError(message);
    default:
      return absl::UnavailableError(message);
  }
}

// Some file systems open a file for direct reads and then refuse to read it so.
bool File::ReadsDirectly() const {
  alignas(kAlignment) std::byte block[kAlignment];
  return calls_.Read(direct_, block, sizeof block, 0) >= 0 || errno != EINVAL;
}

}  // namespace ditserve
