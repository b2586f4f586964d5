#include "server/exit.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/synchronization/mutex.h"

namespace ditserve {

int Fail(const absl::Status& why, int code) {
  std::fprintf(stderr, "ditserve: %s\n", std::string(why.message()).c_str());
  return code;
}

int FailToServe(const absl::Status& why, int code, const std::string& termination_log) {
  std::error_code ignored;  // It is mostly not there.
  if (std::filesystem::is_regular_file(termination_log, ignored)) {
    std::ofstream(termination_log) << "ditserve: " << std::string(why.message()) << "\n";
  }
  return Fail(why, code);
}

void EndAtOnce(const absl::Status& why, const std::string& termination_log) {
  static absl::Mutex once;  // Never unlocked: nobody else ends it.
  once.Lock();
  _exit(FailToServe(why, kFailed, termination_log));
}

}  // namespace ditserve
