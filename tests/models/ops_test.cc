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
#include <cstddef>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/residency/lease.h"
#include "core/storage/module.h"
#include "models/activation_memory.h"
#include "models/kernels/matmul.h"
#include "models/seeded_values.h"
#include "models/weights.h"

namespace ditserve {
namespace {

constexpr at::ScalarType kNarrow[] = {at::kBFloat16, at::kHalf};

at::Tensor Seeded(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype) {
  const at::Tensor tensor = at::empty(shape, at::kFloat);
  FillSeeded(3, name, 0, tensor.numel(), 0.0f, 1.0f, tensor.data_ptr<float>());
  return tensor.to(dtype);
}

// Of a Linear whose tensors live as long.
Weights WeightsOf(const Batch& parameters) {
  ModuleSpec module;
  LeasedTensors leased;
  for (const at::Tensor& parameter : parameters) {
    module.parameters.push_back({"", parameter.sizes().vec()});
    leased.push_back({static_cast<const std::byte*>(parameter.const_data_ptr()), DTypeOf(parameter.scalar_type())});
  }
  return Weights(Lease(std::move(leased), nullptr), module, at::kCPU);
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

// An MLP's two products: of their normed and their multiplied rows few are there beside the hidden layer.
TEST(OpsTest, ProductsThatAreModulatedTakeLittleMemoryBesideAndHaveTheBitsOfTheWhole) {
  const c10::InferenceMode no_autograd;
  ActivationMemory::InstallAllocator();
  constexpr int64_t kRows = 5000, kWidth = 192, kHidden = 4 * kWidth;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = Seeded("x", {kRows, kWidth}, dtype), mod = Seeded("mod", {1, 3 * kWidth}, dtype);
    const Batch scale = Chunk({mod}, kWidth, 0), shift = Chunk({mod}, kWidth, 1), gate = Chunk({mod}, kWidth, 2);
    const Batch in_parameters = {Seeded("in.weight", {kHidden, kWidth}, dtype), Seeded("in.bias", {kHidden}, dtype)};
    const Batch out_parameters = {Seeded("out.weight", {kWidth, kHidden}, dtype), Seeded("out.bias", {kWidth}, dtype)};
    const Weights in = WeightsOf(in_parameters), out = WeightsOf(out_parameters);
    const at::Tensor expected = Linear(ModulatedLayerNorm({x}, scale, shift), in)[0], expected_sum = x.clone();
    AddGated({expected_sum}, gate, Linear({expected}, out));

    const auto x_bytes = static_cast<int64_t>(x.nbytes());
    const auto memory = std::make_shared<ActivationMemory>(4 * x_bytes + x_bytes / 4);
    const ActivationMemory::Scope scope(memory);
    const at::Tensor product = ModulatedLinear({x}, scale, shift, in)[0];
    EXPECT_TRUE(at::equal(product, expected)) << dtype;
    AddGatedLinear({x}, gate, {product}, out);
    EXPECT_TRUE(at::equal(x, expected_sum)) << dtype;
  }
}

// Some items are multiplied together, some alone, and one in pieces. Of so many rows that are multiplied at a time
// there are two kinds beside: normed, and normed and modulated.
TEST(OpsTest, ProductsOfSeveralItemsTakeAsLittleMemoryAndHaveTheBitsOfEachAlone) {
  const c10::InferenceMode no_autograd;
  ActivationMemory::InstallAllocator();
  constexpr int64_t kWidth = 192, kHidden = 4 * kWidth, kAllRows = 300 + 5000 + 732 + 1 + 299 + 1032 + 40;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Batch in_parameters = {Seeded("in.weight", {kHidden, kWidth}, dtype), Seeded("in.bias", {kHidden}, dtype)};
    const Batch out_parameters = {Seeded("out.weight", {kWidth, kHidden}, dtype), Seeded("out.bias", {kWidth}, dtype)};
    const Weights in = WeightsOf(in_parameters), out = WeightsOf(out_parameters);
    Batch x, scale, shift, gate, expected, expected_sums;
    for (const int64_t rows : {300, 5000, 732, 1, 299, 1032, 40}) {
      const std::string name = absl::StrCat("of ", rows);
      x.push_back(Seeded(name, {rows, kWidth}, dtype));
      const at::Tensor mod = Seeded(name + " mod", {1, 3 * kWidth}, dtype);
      scale.push_back(mod.narrow(1, 0, kWidth));
      shift.push_back(mod.narrow(1, kWidth, kWidth));
      gate.push_back(mod.narrow(1, 2 * kWidth, kWidth));
      expected.push_back(ModulatedLinear({x.back()}, {scale.back()}, {shift.back()}, in)[0]);
      expected_sums.push_back(x.back().clone());
      AddGatedLinear({expected_sums.back()}, {gate.back()}, {expected.back().clone()}, out);
    }
    const int64_t row_bytes = kWidth * static_cast<int64_t>(x.front().element_size());
    const auto memory = std::make_shared<ActivationMemory>((4 * kAllRows + 2 * 1032 + 50) * row_bytes);
    const ActivationMemory::Scope scope(memory);
    const Batch products = ModulatedLinear(x, scale, shift, in);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_TRUE(at::equal(products[i], expected[i])) << dtype << " " << i;
    AddGatedLinear(x, gate, products, out);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_TRUE(at::equal(x[i], expected_sums[i])) << dtype << " " << i;
  }
}

// As a layer is that is no wider than its input: what it makes finds no room in rows that are not needed any more.
TEST(OpsTest, ProductsAreAddedWhateverTheWidthOfTheirInput) {
  const c10::InferenceMode no_autograd;
  constexpr int64_t kRows = 2500, kWidth = 64;
  const at::Tensor x = Seeded("x", {kRows, kWidth}, at::kFloat), y = Seeded("y", {kRows, kWidth}, at::kFloat);
  const Batch gate = {Seeded("gate", {1, kWidth}, at::kFloat)};
  const Batch parameters = {Seeded("weight", {kWidth, kWidth}, at::kFloat), Seeded("bias", {kWidth}, at::kFloat)};
  const at::Tensor expected = x.clone();
  AddGated({expected}, gate, Linear({y}, WeightsOf(parameters)));
  AddGatedLinear({x}, gate, {y}, WeightsOf(parameters));
  EXPECT_TRUE(at::equal(x, expected));
}

// A schedule's rows are made together, and one that is made again has the same bits.
TEST(OpsTest, ARowHasTheSameBitsAmongAnyNumberOfOthers) {
  const c10::InferenceMode no_autograd;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Batch parameters = {Seeded("weight", {300, 200}, at::kBFloat16), Seeded("bias", {300}, at::kBFloat16)};
    const Weights linear = WeightsOf(parameters);
    Batch rows, out, one(1);
    for (int64_t i = 0; i < 3 * static_cast<int64_t>(kJoinedRows) + 2; ++i) {
      rows.push_back(Seeded(absl::StrCat("row ", i), {1, 200}, dtype));
      out.push_back(at::empty({1, 300}, rows.back().options()));
    }
    LinearEachInto(rows, linear, out);
    for (size_t i = 0; i < rows.size(); ++i) {
      one[0] = at::empty({1, 300}, rows[i].options());
      LinearInto({rows[i]}, linear, one);
      EXPECT_TRUE(at::equal(out[i], one[0])) << dtype << ", row " << i;
    }
  }
  for (const Isa isa : Isas()) EXPECT_LT(static_cast<int64_t>(kJoinedRows), MatmulFewRows(isa)) << "that one too";
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
