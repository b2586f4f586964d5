#ifndef DITSERVE_TESTS_TESTING_FAULTY_FILE_CALLS_H_
#define DITSERVE_TESTS_TESTING_FAULTY_FILE_CALLS_H_

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/storage/file.h"

namespace ditserve {

// The system's file calls with faults put in their way. Configure before the files are read, or from the same thread.
class FaultyFileCalls final : public FileCalls {
 public:
  // The next `count` reads (pread), or looks at a file (fstat), fail with `error`.
  void FailReads(int count, int error) { FailReadsAfter(0, count, error); }
  void FailStats(int count, int error) { failing_stats_ = count, stat_error_ = error; }

  // As FailReads, after `good` reads that succeed.
  void FailReadsAfter(int64_t good, int count, int error) {
    first_failing_ = reads_ + good;
    failing_reads_ = count;
    read_error_ = error;
  }

  // Each read returns at most `bytes`.
  void ShortenReads(size_t bytes) { max_read_ = bytes; }

  // A file system that opens files for direct reads and then does not read them so.
  void RefuseDirectReads() { refuse_direct_ = true; }

  // Runs once, after the next read's data has arrived: the moment for its file to change.
  void AfterNextRead(std::function<void()> action) {
    const absl::MutexLock lock(&mutex_);
    after_read_ = std::move(action);
  }

  // Called with what each read is about to write to.
  void BeforeEachRead(std::function<void(void*, size_t)> look) { before_read_ = std::move(look); }

  // How long was waited before reads were tried again, each time.
  std::vector<absl::Duration> pauses() const {
    const absl::MutexLock lock(&mutex_);
    return pauses_;
  }

  int64_t reads() const { return reads_; }
  int64_t direct_reads() const { return direct_reads_; }
  int64_t bytes_read() const { return bytes_read_; }

  ssize_t Read(int descriptor, void* data, size_t size, off_t offset) const override {
    if (reads_++ >= first_failing_ && failing_reads_ > 0 && failing_reads_-- > 0) return errno = read_error_, -1;
    const bool direct = (fcntl(descriptor, F_GETFL) & O_DIRECT) != 0;
    if (direct && refuse_direct_) return errno = EINVAL, -1;
    if (before_read_) before_read_(data, std::min(size, max_read_));
    const ssize_t got = FileCalls::Read(descriptor, data, std::min(size, max_read_), offset);
    if (got > 0) bytes_read_ += got;
    if (got > 0 && direct) ++direct_reads_;
    if (const std::function<void()> action = TakeAfterRead()) action();
    return got;
  }

  int Stat(int descriptor, struct stat* status) const override {
    if (failing_stats_ > 0 && failing_stats_-- > 0) return errno = stat_error_, -1;
    return FileCalls::Stat(descriptor, status);
  }

  void Pause(absl::Duration pause) const override {
    const absl::MutexLock lock(&mutex_);
    pauses_.push_back(pause);
  }

 private:
  std::function<void()> TakeAfterRead() const {
    const absl::MutexLock lock(&mutex_);
    return std::exchange(after_read_, nullptr);
  }

  mutable std::atomic<int> failing_reads_ = 0, failing_stats_ = 0;
  int64_t first_failing_ = 0;
  int read_error_ = 0, stat_error_ = 0;
  size_t max_read_ = std::numeric_limits<size_t>::max();
  bool refuse_direct_ = false;
  std::function<void(void*, size_t)> before_read_;
  mutable absl::Mutex mutex_;
  mutable std::function<void()> after_read_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<absl::Duration> pauses_ ABSL_GUARDED_BY(mutex_);
  mutable std::atomic<int64_t> reads_ = 0, direct_reads_ = 0, bytes_read_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_FAULTY_FILE_CALLS_H_
