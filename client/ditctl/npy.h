#ifndef DITSERVE_CLIENT_DITCTL_NPY_H_
#define DITSERVE_CLIENT_DITCTL_NPY_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ditserve/v1/tensor.pb.h"

namespace ditserve::ditctl {

// The tensor in a NumPy .npy file's bytes: versions 1 and 2, C order, little-endian f4 f2 i8 i4, u1 and b1, up to 8
// dimensions. Strict: nothing is allocated for what the file does not hold.
// Errors: InvalidArgument that says what was found.
absl::StatusOr<v1::Tensor> ParseNpy(const std::string& bytes);

// The bytes of a .npy file. A dtype that NumPy lacks (bfloat16, float8_e4m3fn) becomes float32.
std::string ToNpy(const v1::Tensor& tensor);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_NPY_H_
