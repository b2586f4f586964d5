#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/print.h"
#include "client/ditctl/progress.h"
#include "models/seeded_checkpoint.h"

namespace ditserve::ditctl {

namespace {

constexpr int64_t kMaxBlocks = 1000;

// What the command line asks for, checked.
absl::StatusOr<SeededCheckpointOptions> OptionsOf(int64_t blocks, int64_t seed, const std::string& dtype) {
  if (blocks < 1 || blocks > kMaxBlocks) {
    return absl::InvalidArgumentError(absl::StrCat("--blocks: expected 1 to ", kMaxBlocks, ", found ", blocks));
  }
  SeededCheckpointOptions options;
  options.config.num_layers = blocks;
  options.seed = static_cast<uint64_t>(seed);
  for (const DType weight : {DType::kBFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat8E4M3}) {
    options.dtype = weight;
    if (Name(weight) == dtype) return options;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--dtype: expected bfloat16, float16, float32 or float8_e4m3fn, found '", dtype, "'"));
}

}  // namespace

int MakeCheckpoint(const std::vector<std::string>& arguments, const Environment& environment) {
  int64_t blocks = 60, seed = 0;
  std::string directory, dtype = "bfloat16";
  CLI::App app("Writes a checkpoint of made-up weights in Qwen-Image's real shape, in nine shards.",
               "ditctl make-checkpoint");
  AddFlag(app, "blocks", "N", "transformer blocks, 0.68 GB each in bfloat16 (default 60)", &blocks);
  AddFlag(app, "seed", "S", "decides every weight (default 0)", &seed);
  AddFlag(app, "out", "DIR", "folder to write; it must be empty or not exist", &directory);
  AddFlag(app, "dtype", "DTYPE", "bfloat16 (default), float16, float32 or float8_e4m3fn", &dtype);
  if (const std::optional<int> ended = Parse(app, arguments, environment)) return *ended;
  if (directory.empty()) return Fail(absl::InvalidArgumentError("--out DIR is needed"), environment);
  const absl::StatusOr<SeededCheckpointOptions> options = OptionsOf(blocks, seed, dtype);
  if (!options.ok()) return Fail(options.status(), environment);
  absl::Status status;
  {
    Progress progress(environment.err, environment.err_is_terminal);
    status = WriteSeededCheckpoint(
        *options, directory,
        [&](int64_t written, int64_t total) {
          progress.Show(static_cast<double>(written), static_cast<double>(total),
                        absl::StrCat(Bytes(written), " of ", Bytes(total)), absl::Now());
        },
        [&] { return environment.interrupted.load(); });
  }
  return status.ok() ? kOk : Fail(status, environment);
}

}  // namespace ditserve::ditctl
