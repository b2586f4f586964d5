#ifndef DITSERVE_CORE_STORAGE_SAFETENSORS_WRITER_H_
#define DITSERVE_CORE_STORAGE_SAFETENSORS_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/base/dtype.h"

namespace ditserve {

// Writes a safetensors file from beginning to end, holding none of its data.
//
// Thread safety: thread-compatible.
class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
  };

  // Creates `path`, which must not exist, and writes the header.
  // Errors: InvalidArgument for what ParseSafetensorsHeader would refuse, naming the tensor; AlreadyExists; NotFound if
  // the folder does not exist; ResourceExhausted if the disk is full; Unavailable. They name the file without its
  // folder.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::string& path,
                                                                   const std::vector<Tensor>& tensors,
                                                                   const std::map<std::string, std::string>& metadata);
  // Leaves an unfinished file behind; its owner removes it.
  ~SafetensorsWriter();

  // The next bytes of the tensors' data, in the order in which Create was given them.
  // Errors: FailedPrecondition if they are more than the header announces; ResourceExhausted; Unavailable.
  absl::Status Append(absl::Span<const std::byte> data);

  // Sees the file to the disk and closes it. Once, after the last Append.
  // Errors: FailedPrecondition unless all data was appended; else as Append.
  absl::Status Finish();

 private:
  SafetensorsWriter(std::string name, int descriptor, int64_t data_bytes)
      : name_(std::move(name)), descriptor_(descriptor), missing_bytes_(data_bytes) {}
  absl::Status Write(const void* data, size_t size);

  std::string name_;
  int descriptor_;
  int64_t missing_bytes_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_STORAGE_SAFETENSORS_WRITER_H_
