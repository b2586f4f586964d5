#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/print.h"
#include "client/ditctl/progress.h"
#include "models/seeded_checkpoint.h"

namespace ditserve::ditctl {

int MakeCheckpoint(const std::vector<std::string>& arguments, const Environment& environment) {
  int64_t blocks = 60, seed = 0;
  std::string directory, dtype = "bfloat16";
  Flags flags("make-checkpoint", "Writes a checkpoint of made-up weights in Qwen-Image's real shape, in nine shards.");
  flags.Add("blocks", "N", "transformer blocks, 0.68 GB each in bfloat16 (default 60)", &blocks);
  flags.Add("seed", "S", "decides every weight (default 0)", &seed);
  flags.Add("out", "DIR", "folder to write; it must be empty or not exist", &directory);
  flags.Add("dtype", "DTYPE", "bfloat16 (default), float16, float32 or float8_e4m3fn", &dtype);
  absl::Status status = flags.Parse(arguments);
  if (status.ok() && flags.help()) {
    environment.out << flags.Usage();
    return kOk;
  }
  SeededCheckpointOptions options;
  options.config.num_layers = blocks;
  options.seed = static_cast<uint64_t>(seed);
  bool known = false;
  for (const DType weight : {DType::kBFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat8E4M3}) {
    if (Name(weight) != dtype) continue;
    options.dtype = weight;
    known = true;
  }
  if (status.ok() && directory.empty()) status = absl::InvalidArgumentError("--out DIR is needed");
  if (status.ok() && !known) status = absl::InvalidArgumentError(absl::StrCat("--dtype: unknown dtype '", dtype, "'"));
  if (status.ok() && (blocks < 1 || blocks > 1000)) status = absl::InvalidArgumentError("--blocks: expected 1 to 1000");
  if (!status.ok()) return Fail(status, environment);
  {
    Progress progress(environment.err, environment.err_is_terminal, absl::Now());
    status = WriteSeededCheckpoint(
        options, directory,
        [&](int64_t written, int64_t total) {
          progress.Show(static_cast<double>(written), static_cast<double>(total),
                        absl::StrCat(Bytes(written), " of ", Bytes(total)), absl::Now());
        },
        [&] { return environment.interrupted.load(); });
  }
  return status.ok() ? kOk : Fail(status, environment);
}

}  // namespace ditserve::ditctl
