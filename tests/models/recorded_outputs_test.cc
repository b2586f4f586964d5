// Compares float32 outputs, bit by bit, with those that were recorded: a change that means to change none shows that it
// does not. parity_test.cc says whether they are right.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "models/kernels/attention.h"
#include "models/kernels/matmul.h"
#include "models/kernels/tile_kernels.h"
#include "models/qwen_image_dit.h"
#include "tests/testing/fake_lease_source.h"

namespace ditserve {
namespace {

struct Case {
  const char* name;
  int64_t blocks;
  int64_t height, width;
  std::vector<int64_t> lengths;  // Of the prompts; the longest has a hole where there are several.
  DType weights = DType::kFloat32;
};

const std::vector<Case>& Cases() {
  static const auto& cases = *new std::vector<Case>{
      {"one_patch", 1, 16, 16, {1}},
      {"odd", 2, 48, 80, {5}},
      {"wide", 1, 64, 256, {77}},
      {"several_blocks_of_keys", 2, 256, 256, {77}},
      {"batch", 2, 96, 64, {33, 5, 1}},
      {"bfloat16_weights", 1, 128, 80, {9, 20}, DType::kBFloat16},
      {"float16_weights", 1, 80, 128, {6}, DType::kFloat16},
      {"float8_weights", 2, 64, 64, {40}, DType::kFloat8E4M3},
  };
  return cases;
}

QwenImageDiTConfig ConfigOf(const Case& c, Numerics numerics) {
  QwenImageDiTConfig config;
  config.num_layers = c.blocks;
  config.num_attention_heads = 2;
  config.joint_attention_dim = 192;
  config.numerics = numerics;
  return config;
}

at::Tensor Seeded(const std::string& name, at::IntArrayRef shape, float mean, float deviation) {
  const at::Tensor tensor = at::empty(shape, at::kFloat);
  FillSeeded(11, name, 0, tensor.numel(), mean, deviation, tensor.data_ptr<float>());
  return tensor;
}

ForwardInputs InputsOf(const Case& c, const QwenImageDiTConfig& config) {
  const auto batch = static_cast<int64_t>(c.lengths.size());
  const int64_t tokens = *std::max_element(c.lengths.begin(), c.lengths.end());
  ForwardInputs inputs = {Seeded("latents", {batch, 16, c.height / 8, c.width / 8}, 0, 1),
                          Seeded("timestep", {batch}, 0.5, 0.2).clamp_(0, 1),
                          Seeded("prompt", {batch, tokens, config.joint_attention_dim}, 0, 1),
                          {}};
  if (batch == 1) return inputs;
  inputs.prompt_emb_mask = at::ones({batch, tokens}, at::kBool);
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t length = c.lengths[static_cast<size_t>(i)];
    inputs.prompt_emb_mask[i].narrow(0, length, tokens - length).fill_(false);
    if (length == tokens) inputs.prompt_emb_mask[i][2] = false;
  }
  return inputs;
}

// FNV-1a, 64 bits.
uint64_t HashOf(const at::Tensor& tensor) {
  uint64_t hash = 0xCBF29CE484222325;
  const auto* const bytes = static_cast<const unsigned char*>(tensor.const_data_ptr());
  for (size_t i = 0; i < tensor.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001B3;
  return hash;
}

std::string Hex(uint64_t hash) { return absl::StrCat(absl::Hex(hash, absl::kZeroPad16)); }

std::string HashOfPass(const Case& c, Numerics numerics) {
  const c10::InferenceMode no_autograd;
  const QwenImageDiT model(ConfigOf(c, numerics));
  const ForwardInputs inputs = InputsOf(c, model.config());
  FakeLeaseSource weights(model.modules(), c.weights);
  Task<at::Tensor> pass = model.Forward(inputs, at::kCPU, at::kFloat, weights);
  pass.Start();
  return Hex(HashOf(pass.Result().contiguous()));
}

FloatRows RowsOf(const at::Tensor& x) { return {x.data_ptr<float>(), x.stride(0), x.size(0)}; }

std::string HashOfProduct(int64_t rows, Isa isa) {
  const at::Tensor x = Seeded("x", {rows, 700}, 0, 1), weight = Seeded("weight", {333, 700}, 0, 0.05f);
  const at::Tensor bias = Seeded("bias", {333}, 0, 1), y = at::empty({rows, 333}, at::kFloat);
  const auto bytes = [](const at::Tensor& tensor) { return static_cast<const std::byte*>(tensor.const_data_ptr()); };
  MultiplyFloat32({{RowsOf(x), y.data_ptr<float>(), y.stride(0)}},
                  {bytes(weight), bytes(bias), DType::kFloat32, 333, 700}, isa);
  return Hex(HashOf(y));
}

std::string HashOfAttention(Isa isa) {
  const at::Tensor q = Seeded("q", {300, 3 * 72}, 0, 1), k = Seeded("k", {300, 3 * 72}, 0, 1),
                   v = Seeded("v", {300, 3 * 72}, 0, 1), out = at::empty({300, 3 * 72}, at::kFloat);
  AttendFloat32({RowsOf(q), RowsOf(k), RowsOf(v), 3, 72}, out.data_ptr<float>(), out.stride(0), isa);
  return Hex(HashOf(out));
}

std::string NameOf(Isa isa) {
  static constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512",
                                           "avx512"};  // The last two differ in bfloat16 alone.
  return kNames[static_cast<size_t>(isa)];
}

// What stands in the file behind `key`, a line's words but the last. Where it says nothing, the message says what to
// add.
std::string Recorded(const std::string& key) {
  static const auto& lines = *new std::map<std::string, std::string>([] {
    std::map<std::string, std::string> read;
    std::ifstream file(DITSERVE_RECORDED_FILE);
    for (std::string line; std::getline(file, line);) {
      const size_t space = line.rfind(' ');
      read[line.substr(0, space)] = line.substr(space + 1);
    }
    return read;
  }());
  const auto found = lines.find(key);
  return found == lines.end() ? "not recorded" : found->second;
}

void ExpectRecorded(const std::string& key, const std::string& hash) { EXPECT_EQ(hash, Recorded(key)) << key; }

// Bits depend on the instruction sets that our kernels and LibTorch's choose, not on the number of threads; CTest runs
// this with each of LibTorch's. They are those of g++ 12 at -O3. LibTorch takes a timestep's sines from MKL, which has
// code of its own for each of Intel's processors and one for all others: here it is the one for all.
const int kOneMkl = setenv("MKL_CBWR", "COMPATIBLE", 1);  // It is read at the first sine.

TEST(RecordedOutputsTest, PassesInFloat32) {
  const std::string machine = absl::StrCat(NameOf(Isas().back()), " ", at::get_cpu_capability());
  for (const Case& c : Cases()) {
    for (const Numerics numerics : {Numerics::kDiffSynth, Numerics::kDiffusers}) {
      ExpectRecorded(absl::StrCat(machine, " ", c.name, " ", Name(numerics)), HashOfPass(c, numerics));
    }
  }
}

TEST(RecordedOutputsTest, OutputsDoNotDependOnTheNumberOfThreads) {
  const int threads = at::get_num_threads();
  const std::string expected = HashOfPass(Cases().back(), Numerics::kDiffSynth);
  for (const int count : {1, 3, 16}) {
    at::set_num_threads(count);
    EXPECT_EQ(HashOfPass(Cases().back(), Numerics::kDiffSynth), expected) << count << " threads";
  }
  at::set_num_threads(threads);
}

TEST(RecordedOutputsTest, KernelsOfEachInstructionSet) {
  for (const Isa isa : Isas()) {
    ExpectRecorded(absl::StrCat(NameOf(isa), " product"), HashOfProduct(50, isa));
    ExpectRecorded(absl::StrCat(NameOf(isa), " product_of_few_rows"), HashOfProduct(1, isa));
    ExpectRecorded(absl::StrCat(NameOf(isa), " attention"), HashOfAttention(isa));
  }
}

}  // namespace
}  // namespace ditserve
