#include "models/rope.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/polar.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

namespace ditserve {
namespace {

constexpr double kTheta = 10000.0;

// e^(i * position * theta^(-2k/dim)), shape [positions, dim / 2].
at::Tensor Rotations(const at::Tensor& positions, int64_t dim) {
  const at::Tensor exponents = at::arange(0, dim, 2, positions.options()).div(static_cast<double>(dim));
  const at::Tensor angles = at::outer(positions, at::pow(kTheta, exponents).reciprocal());
  return at::polar(at::ones_like(angles), angles);
}

// -ceil(n/2) .. floor(n/2)-1
at::Tensor CentredPositions(int64_t count, const at::TensorOptions& options) {
  return at::arange(-(count - count / 2), count / 2, options);
}

}  // namespace

at::Tensor JointRotary(const at::Tensor& text_positions, int64_t rows, int64_t columns,
                       const std::array<int64_t, 3>& axes) {
  const at::TensorOptions& options = text_positions.options();
  const at::Tensor from_text = text_positions.add(static_cast<double>(std::max(rows / 2, columns / 2)));
  std::vector<at::Tensor> text;
  for (const int64_t axis : axes) text.push_back(Rotations(from_text, axis));

  const int64_t halves[] = {axes[0] / 2, axes[1] / 2, axes[2] / 2};
  const at::Tensor frame = Rotations(at::zeros({1}, options), axes[0]).view({1, 1, halves[0]});
  const at::Tensor height = Rotations(CentredPositions(rows, options), axes[1]).view({rows, 1, halves[1]});
  const at::Tensor width = Rotations(CentredPositions(columns, options), axes[2]).view({1, columns, halves[2]});
  const at::Tensor image = at::cat({frame.expand({rows, columns, halves[0]}), height.expand({rows, columns, halves[1]}),
                                    width.expand({rows, columns, halves[2]})},
                                   -1);
  return at::cat({at::cat(text, -1), image.reshape({rows * columns, -1})}, 0);
}

}  // namespace ditserve
