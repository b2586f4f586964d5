#ifndef DITSERVE_TESTS_TESTING_NO_DESCRIPTORS_H_
#define DITSERVE_TESTS_TESTING_NO_DESCRIPTORS_H_

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>

namespace ditserve {

// While it lives this process can open nothing more.
class NoDescriptors {
 public:
  NoDescriptors() {
    const int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);  // All below it are taken.
    if (lowest < 0 || close(lowest) != 0 || getrlimit(RLIMIT_NOFILE, &before_) != 0) abort();
    rlimit none = before_;
    none.rlim_cur = static_cast<rlim_t>(lowest);
    if (setrlimit(RLIMIT_NOFILE, &none) != 0) abort();
  }
  NoDescriptors(const NoDescriptors&) = delete;
  NoDescriptors& operator=(const NoDescriptors&) = delete;
  ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_ = {};
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_NO_DESCRIPTORS_H_
