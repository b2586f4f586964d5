#ifndef DITSERVE_CLIENT_DITCTL_TENSOR_FILE_H_
#define DITSERVE_CLIENT_DITCTL_TENSOR_FILE_H_

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ditserve/v1/tensor.pb.h"

namespace ditserve::ditctl {

// Texts by their names, which .safetensors keeps beside its tensors and .npy has no place for.
using Metadata = std::map<std::string, std::string>;

// Reads one tensor from .npy, or tensor `name` from .safetensors; `metadata`, if it is not null, gets that of the file.
// Errors: NotFound if there is no such file or tensor; InvalidArgument; they name the file.
absl::StatusOr<v1::Tensor> ReadTensor(const std::string& path, const std::string& name, Metadata* metadata = nullptr);

// Reads all tensors of a .safetensors file. Errors: as ReadTensor, and InvalidArgument for one not among `names`, for
// a name that is misspelt would be passed over.
absl::StatusOr<std::map<std::string, v1::Tensor>> ReadTensors(const std::string& path,
                                                              const std::set<std::string>& names);

// Whether `path` ends in one of `extensions` and is in a folder that can be written to: what is better known before
// there is something to write. Errors: InvalidArgument.
absl::Status CheckWritable(const std::string& path,
                           const std::vector<std::string>& extensions = {".npy", ".safetensors"});

// Writes to .npy or .safetensors (as tensor `name`, with `metadata`), through a file beside it that is renamed when it
// is whole; on an error nothing is left behind. `tensor` is one that CheckFloating accepts.
absl::Status WriteTensor(const std::string& path, const std::string& name, const v1::Tensor& tensor,
                         const Metadata& metadata = {});

// Writes `bytes`, likewise.
absl::Status WriteWhole(const std::string& path, const std::string& bytes);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_TENSOR_FILE_H_
