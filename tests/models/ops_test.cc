#include "models/ops.h"

#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "models/activation_memory.h"
#include "models/seeded_values.h"

namespace ditserve {
namespace {

constexpr at::ScalarType kNarrow[] = {at::kBFloat16, at::kHalf};

at::Tensor Seeded(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype) {
  const at::Tensor tensor = at::empty(shape, at::kFloat);
  FillSeeded(3, name, 0, tensor.numel(), 0.0f, 1.0f, tensor.data_ptr<float>());
  return tensor.to(dtype);
}

// Both references write x * (1 + scale) + shift and x + gate * y, and each operation rounds.
TEST(OpsTest, ModulationRoundsTheProductAndTheSum) {
  const c10::InferenceMode no_autograd;
  for (const at::ScalarType dtype : kNarrow) {
    const at::Tensor x = Seeded("x", {700, 384}, dtype), scale = Seeded("scale", {1, 384}, dtype),
                     shift = Seeded("shift", {1, 384}, dtype);
    const at::Tensor expected = at::layer_norm(x, {384}, {}, {}, 1e-6).mul(scale.add(1)).add(shift);
    EXPECT_TRUE(at::equal(ModulatedLayerNorm({x}, {scale}, {shift})[0], expected)) << dtype;
  }
}

TEST(OpsTest, AGateRoundsTheProductAndTheSum) {
  const c10::InferenceMode no_autograd;
  for (const at::ScalarType dtype : kNarrow) {
    const at::Tensor x = Seeded("x", {700, 384}, dtype), gate = Seeded("gate", {1, 384}, dtype),
                     y = Seeded("y", {700, 384}, dtype);
    const at::Tensor expected = x.add(gate.mul(y));
    AddGated({x}, {gate}, {y});
    EXPECT_TRUE(at::equal(x, expected)) << dtype;
  }
}

// As both references do: diffusers' transformer has a function that rounds the frequencies too, and calls another.
TEST(OpsTest, TimeChannelsAreMadeInFloat32OfANarrowTimestep) {
  const c10::InferenceMode no_autograd;
  const at::Tensor frequencies = at::exp(at::arange(128, at::kFloat).mul(-std::log(10000.0)).div(128));
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor timestep = at::full({1}, 0.987f, at::kFloat).to(dtype);
    const at::Tensor angles = timestep.to(at::kFloat).mul(frequencies).mul(1000);
    const at::Tensor expected = at::cat({at::cos(angles), at::sin(angles)}).view({1, 256});
    EXPECT_TRUE(at::equal(TimeChannels(timestep), expected)) << dtype;
  }
}

TEST(OpsTest, NonFiniteElementsAreCountedWithoutTakingTheMemoryOfAll) {
  const c10::InferenceMode no_autograd;
  ActivationMemory::InstallAllocator();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    at::Tensor x = at::zeros({3, 1 << 20}, dtype);
    const auto memory = std::make_shared<ActivationMemory>(2 << 20);
    const ActivationMemory::Scope scope(memory);
    EXPECT_EQ(CountNonFinite(x), 0);
    x[0][5] = std::numeric_limits<float>::infinity();
    x[1][70000] = -std::numeric_limits<float>::infinity();
    x[2][(1 << 20) - 1] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(CountNonFinite(x), 3);
  }
}

}  // namespace
}  // namespace ditserve
