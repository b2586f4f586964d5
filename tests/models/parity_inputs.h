#ifndef DITSERVE_TESTS_MODELS_PARITY_INPUTS_H_
#define DITSERVE_TESTS_MODELS_PARITY_INPUTS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/file.h"
#include "core/safetensors.h"
#include "core/seeded_values.h"
#include "core/status_macros.h"
#include "models/config.h"
#include "nlohmann/json.hpp"

namespace ditserve {

// One forward pass that scripts/parity/record.py recorded, on the checkpoint that WriteSeededCheckpoint makes of
// seed 0 and `blocks` blocks. The inputs are made from the seed, as scripts/parity/cases.py makes them.
struct ParityCase {
  std::string name;
  int64_t blocks = 0;
  int64_t height = 0;  // Pixels.
  int64_t width = 0;   // Pixels.
  int64_t batch = 0;
  int64_t tokens = 0;         // Of the longest prompt.
  std::vector<int64_t> mask;  // Shape [batch, tokens], row-major; 1 for a token that counts.
  float timestep = 0;         // Of every item.
  uint64_t seed = 0;

  // Shape [batch, 16, height / 8, width / 8].
  std::vector<float> Latents() const { return Made("latents", batch * 16 * (height / 8) * (width / 8)); }

  // Shape [batch, tokens, 3584].
  std::vector<float> PromptEmb() const { return Made("prompt_emb", batch * tokens * 3584); }

 private:
  std::vector<float> Made(absl::string_view input, int64_t count) const {
    std::vector<float> values(static_cast<size_t>(count));
    FillSeeded(seed, input, 0, count, 0.0f, 1.0f, values.data());
    return values;
  }
};

// The file that record.py wrote.
class ParityRecord {
 public:
  static absl::StatusOr<ParityRecord> Open(const std::string& path) {
    ParityRecord record;
    DITSERVE_ASSIGN_OR_RETURN(record.file_, File::Open(path));
    DITSERVE_ASSIGN_OR_RETURN(record.header_, ReadSafetensorsHeader(*record.file_));
    for (const auto& [name, text] : record.header_.metadata) {
      if (name.find('.') == std::string::npos) record.cases_.push_back(ParseCase(name, text));
    }
    return record;
  }

  // By name.
  const std::vector<ParityCase>& cases() const { return cases_; }

  // Where the output of `numerics` stands, F32 of shape [batch, height / 16 * width / 16, 64]; null if that
  // implementation has no answer to the case.
  const TensorEntry* Find(const ParityCase& parity_case, Numerics numerics) const {
    for (const TensorEntry& entry : header_.tensors) {
      if (entry.name == absl::StrCat(parity_case.name, ".", Name(numerics))) return &entry;
    }
    return nullptr;
  }

  absl::StatusOr<std::vector<float>> Read(const TensorEntry& output) const {
    std::vector<float> values(static_cast<size_t>(output.size_bytes) / sizeof(float));
    DITSERVE_RETURN_IF_ERROR(file_->ReadAt(
        output.offset_bytes,
        absl::MakeSpan(reinterpret_cast<std::byte*>(values.data()), static_cast<size_t>(output.size_bytes))));
    return values;
  }

  // Largest error of the implementation's own bfloat16 output against its float32 output, relative to the latter's
  // largest magnitude; nothing where it was not recorded.
  std::optional<double> BFloat16Error(const ParityCase& parity_case, Numerics numerics) const {
    const auto found = header_.metadata.find(absl::StrCat("bfloat16_error.", parity_case.name, ".", Name(numerics)));
    if (found == header_.metadata.end()) return std::nullopt;
    return std::stod(found->second);
  }

 private:
  static ParityCase ParseCase(const std::string& name, const std::string& text) {
    const nlohmann::json json = nlohmann::json::parse(text);
    ParityCase parsed{name, json.at("blocks"), json.at("height"), json.at("width")};
    parsed.timestep = json.at("timestep");
    parsed.seed = json.at("seed");
    for (const nlohmann::json& row : json.at("mask")) {
      ++parsed.batch;
      parsed.tokens = static_cast<int64_t>(row.size());
      for (const nlohmann::json& counts : row) parsed.mask.push_back(counts);
    }
    return parsed;
  }

  std::unique_ptr<File> file_;
  SafetensorsHeader header_;
  std::vector<ParityCase> cases_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_MODELS_PARITY_INPUTS_H_
