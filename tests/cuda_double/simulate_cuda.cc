// Runs seeds of random riders on the CUDA device, on the double of its runtime, in several processes, and tells what
// came of them. A seed that fails is told by its number, and runs alone with --from=SEED --seeds=1.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/flags.h"
#include "core/base/status_macros.h"
#include "tests/cuda_double/cuda_double.h"
#include "tests/testing/random_trace.h"
#include "tests/testing/suite_devices.h"

namespace ditserve {
namespace {

struct Options {
  int64_t from = 1, seeds = 1000;
  int64_t processes = 0;  // 0: as below.
  std::string help;
};

// Errors: InvalidArgument, a line that names the flag.
absl::Status Parse(const std::vector<std::string>& arguments, Options& options) {
  CLI::App app(
      "Runs seeds of random riders on the CUDA device, on a double of the CUDA runtime: on one device or two, with\n"
      "budgets that change; the first failure of a process ends it, and with it this program with 1.",
      "simulate_cuda");
  AddFlag(app, "from", "SEED", "the first (default 1)", &options.from);
  AddFlag(app, "seeds", "N", "how many (default 1000)", &options.seeds);
  AddFlag(app, "processes", "N", "seeds at one time (default 0: two a core)", &options.processes);
  DITSERVE_RETURN_IF_ERROR(ParseFlags(app, arguments, &options.help));
  if (options.from < 0 || options.seeds < 1 || options.processes < 0 || options.processes > 1024) {
    return absl::InvalidArgumentError(
        "--from, --seeds, --processes: expected at least 0, 1 and 0, the last at most 1024");
  }
  return absl::OkStatus();
}

// What all processes have done.
struct Tally {
  std::atomic<int64_t> seeds = 0, calls = 0, launches = 0, synchronizations = 0;
};

bool RunSeed(uint32_t seed, Tally& tally) {
  {
    LateDevices late(seed);
    RandomTrace(seed, late, 1 + static_cast<int>(seed % 2)).Run();
    for (const auto& [function, calls] : cuda_double::AllCalls()) tally.calls += calls;
    tally.launches += static_cast<int64_t>(cuda_double::Launches().size());
    tally.synchronizations += cuda_double::HostSynchronizations();
  }
  ++tally.seeds;
  if (!::testing::UnitTest::GetInstance()->Failed()) return true;
  std::printf("seed %u failed\n", seed);
  return false;
}

// Two a core: of a seed's threads mostly one has something to do, and between two of them a core would wait.
int64_t Processes(const Options& options) {
  const auto cores = static_cast<int64_t>(std::max(1u, std::thread::hardware_concurrency()));
  return std::min(options.processes > 0 ? options.processes : 2 * cores, options.seeds);
}

bool Run(const Options& options) {
  void* const shared = mmap(nullptr, sizeof(Tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return false;
  Tally& tally = *new (shared) Tally();
  const auto start = std::chrono::steady_clock::now();
  const int64_t processes = Processes(options);
  for (int64_t i = 0; i < processes; ++i) {
    if (fork() != 0) continue;
    bool good = true;
    for (int64_t seed = i; good && seed < options.seeds; seed += processes) {
      good = RunSeed(static_cast<uint32_t>(options.from + seed), tally);
    }
    std::fflush(stdout);
    _exit(good ? 0 : 1);
  }
  int64_t failed = 0;
  for (int status = 0; wait(&status) > 0;) failed += status != 0;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%" PRId64 " seeds from %" PRId64 ", %" PRId64 " failures, %" PRId64 " CUDA calls, %" PRId64
              " launches, %" PRId64 " host synchronizations, %.0f s in %" PRId64 " processes\n",
              tally.seeds.load(), options.from, failed, tally.calls.load(), tally.launches.load(),
              tally.synchronizations.load(), took.count(), processes);
  return failed == 0 && tally.seeds == options.seeds;
}

int Main(const std::vector<std::string>& arguments) {
  Options options;
  if (const absl::Status status = Parse(arguments, options); !status.ok()) {
    std::fprintf(stderr, "simulate_cuda: %s\n", std::string(status.message()).c_str());
    return 2;
  }
  if (!options.help.empty()) {
    std::fputs(options.help.c_str(), stdout);
    return 0;
  }
  return Run(options) ? 0 : 1;
}

}  // namespace
}  // namespace ditserve

int main(int argc, char** argv) {  // NOLINT(bugprone-exception-escape)
  // Each seed writes a checkpoint and reads it, past the page cache: what is waited for should not be a disk.
  constexpr char kInMemory[] = "/dev/shm";
  if (access(kInMemory, W_OK) == 0) setenv("TMPDIR", kInMemory, /*overwrite=*/0);
  int none = 1;
  ::testing::InitGoogleTest(&none, argv);
  return ditserve::Main({argv + 1, argv + argc});
}
