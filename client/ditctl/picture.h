#ifndef DITSERVE_CLIENT_DITCTL_PICTURE_H_
#define DITSERVE_CLIENT_DITCTL_PICTURE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ditserve/v1/tensor.pb.h"

namespace ditserve::ditctl {

// Red, green and blue of each pixel, row by row.
struct Picture {
  int64_t width = 0;
  int64_t height = 0;
  std::vector<uint8_t> rgb;
};

// What latents roughly look like without the VAE, one pixel for each; images of a batch side by side. `latents`: shape
// [B, 16, H/8, W/8], one that CheckFloating accepts. Errors: InvalidArgument: another shape.
absl::Status Preview(const v1::Tensor& latents, Picture& picture);

// A PNG whose Comment is `comment`, ASCII.
std::string EncodePng(const Picture& picture, const std::string& comment);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_PICTURE_H_
