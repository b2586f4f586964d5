#ifndef DITSERVE_SERVER_GATE_FILE_STAMP_H_
#define DITSERVE_SERVER_GATE_FILE_STAMP_H_

#include <sys/stat.h>

#include <cstdint>
#include <string>
#include <tuple>

namespace ditserve {

// What tells one state of a file from another without reading it. Take it before reading: what changes meanwhile is
// then seen as changed.
class FileStamp {
 public:
  // Of no file.
  FileStamp() = default;

  // What a symbolic link leads to: secrets are exchanged by turning one.
  static FileStamp Of(const std::string& path) {
    struct stat file = {};
    if (stat(path.c_str(), &file) != 0) return {};
    FileStamp stamp;
    stamp.state_ = {file.st_dev, file.st_ino, file.st_size, file.st_ctim.tv_sec, file.st_ctim.tv_nsec};
    return stamp;
  }

  friend bool operator==(const FileStamp& a, const FileStamp& b) { return a.state_ == b.state_; }

 private:
  std::tuple<uint64_t, uint64_t, int64_t, int64_t, int64_t> state_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_FILE_STAMP_H_
