#ifndef DITSERVE_CORE_STORAGE_FILE_H_
#define DITSERVE_CORE_STORAGE_FILE_H_

#include <sys/stat.h>
#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace ditserve {

// The system calls that File reads by; tests put faults in their place. Thread-safe.
class FileCalls {
 public:
  virtual ~FileCalls() = default;
  virtual ssize_t Read(int descriptor, void* data, size_t size, off_t offset) const;  // pread(2)
  virtual int Stat(int descriptor, struct stat* status) const;                        // fstat(2)
  virtual void Pause(absl::Duration pause) const;  // Before a failing disk is asked again.

  static const FileCalls& System();
};

// A regular file held open for reading. What is read is what was there at Open, or an error: a file that is truncated,
// rewritten, replaced or unlinked meanwhile is noticed after each read. Where the kernel does not watch (another
// machine's writes to a network file system, or no inotify instance is left), a file that was rewritten is known by
// its modification time alone.
//
// Thread safety: thread-safe.
class File {
 public:
  // Alignment of direct reads, bytes.
  static constexpr int64_t kAlignment = 4096;

  // `calls` must outlive the file.
  // Errors: NotFound; InvalidArgument if it is no regular file; Unavailable. They name the file without its folder.
  static absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path,
                                                    const FileCalls& calls = FileCalls::System());
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Without its folder.
  const std::string& name() const { return name_; }
  int64_t size_bytes() const { return size_bytes_; }

  // Fills `target` with the bytes at `offset`.
  // Errors: DataLoss if the file is not what was opened, or ends before; Unavailable if the disk fails repeatedly.
  absl::Status ReadAt(int64_t offset, absl::Span<std::byte> target) const;

  // Reads bytes [offset, offset + size) past the page cache where the file system allows it, and returns where in
  // `slot` they are: at offset % kAlignment. `slot` is aligned to kAlignment and takes all blocks of that size that
  // have a part in them. Errors as ReadAt.
  absl::StatusOr<absl::Span<const std::byte>> ReadDirect(int64_t offset, int64_t size,
                                                         absl::Span<std::byte> slot) const;

 private:
  File(std::string name, const FileCalls& calls) : name_(std::move(name)), calls_(calls) {}

  // Reads at least `needed` and at most `size` bytes, then checks that the file is still what was opened. Continues
  // short reads; asks a failing disk a few times, after growing
  // pauses.
  absl::Status Read(int descriptor, int64_t offset, std::byte* target, int64_t size, int64_t needed) const;
  absl::Status ReadOnce(int descriptor, int64_t offset, std::byte* target, int64_t size, int64_t needed) const;
  absl::Status CheckGeneration() const;
  bool Modified() const;
  absl::Status Failure(int error) const;
  bool ReadsDirectly() const;

  const std::string name_;
  const FileCalls& calls_;
  int buffered_ = -1;
  int direct_ = -1;  // -1 where the file system has no direct reads.
  int64_t size_bytes_ = 0;
  struct timespec modified_ = {};
  int watch_ = -1;  // An inotify instance that tells of writes, whatever time they leave behind; -1: there is none.
  mutable std::atomic<bool> written_ = false;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_STORAGE_FILE_H_
