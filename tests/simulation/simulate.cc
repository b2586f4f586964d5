// Runs seeds of the residency policy's simulator, on all cores, until they are done or time is up, and tells what came
// of them.
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "core/base/flags.h"
#include "core/base/status_macros.h"
#include "tests/simulation/run.h"

namespace ditserve::simulation {
namespace {

struct Options {
  int kind = -1;
  int64_t from = 1, seeds = INT64_MAX, steps = INT64_MAX, minutes = INT64_MAX;
  int64_t threads = 0;  // 0: one a core.
  int64_t shrink = 1;
  std::optional<int64_t> trace;
  std::string help;
};

absl::Status ReadKind(const std::string& name, int& kind) {
  std::vector<std::string> valid;
  for (const Kind each : kKinds) {
    valid.emplace_back(std::string(Name(each)));
    if (name == valid.back()) kind = static_cast<int>(each);
  }
  if (kind >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--kind: expected one of ", absl::StrJoin(valid, ", "), ", found '", name, "'"));
}

// Errors: InvalidArgument, a line that names the flag.
absl::Status Parse(const std::vector<std::string>& arguments, Options& options) {
  CLI::App app(
      "Runs seeds of the residency policy's simulator until as many seeds, steps or minutes are over, whichever is\n"
      "first; the first failure is shrunk to a scenario to paste into a test, and ends it with 1.",
      "simulate");
  std::optional<std::string> kind;
  AddFlag(app, "kind", "KIND",
          "calm, faults, refusals or real; left out, the small ones take turns, and a real one\n"
          "comes every 2,000 seeds",
          &kind);
  AddFlag(app, "from", "SEED", "the first (default 1)", &options.from);
  AddFlag(app, "seeds", "N", "ends after so many seeds", &options.seeds);
  AddFlag(app, "steps", "N", "ends after so many steps", &options.steps);
  AddFlag(app, "minutes", "N", "ends after so many minutes", &options.minutes);
  AddFlag(app, "threads", "N", "seeds at one time (default 0: as many as there are cores)", &options.threads);
  AddFlag(app, "shrink", "0|1", "whether a failure is shrunk (default 1)", &options.shrink);
  AddFlag(app, "trace", "SEED", "runs one seed, and prints what is loaded", &options.trace);
  DITSERVE_RETURN_IF_ERROR(ParseFlags(app, arguments, &options.help));
  struct Number {
    const char* flag;
    int64_t value, least, most;
  };
  for (const Number& number : {Number{"--from", options.from, 0, INT64_MAX},
                               {"--seeds", options.seeds, 1, INT64_MAX},
                               {"--steps", options.steps, 1, INT64_MAX},
                               {"--minutes", options.minutes, 1, INT64_MAX},
                               {"--threads", options.threads, 0, 1024},
                               {"--shrink", options.shrink, 0, 1},
                               {"--trace", options.trace.value_or(0), 0, INT64_MAX}}) {
    if (number.value >= number.least && number.value <= number.most) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        number.flag, ": expected at least ", number.least,
        number.most == INT64_MAX ? "" : absl::StrCat(" and at most ", number.most), ", found ", number.value));
  }
  return kind ? ReadKind(*kind, options.kind) : absl::OkStatus();
}

Kind KindOf(const Options& options, uint64_t seed) {
  constexpr uint64_t kRealEvery = 2000;
  if (options.kind >= 0) return static_cast<Kind>(options.kind);
  return seed % kRealEvery == kRealEvery - 1 ? Kind::kReal : kKinds[seed % 3];
}

class Run {
 public:
  explicit Run(const Options& options) : options_(options), next_(static_cast<uint64_t>(options.from)) {}

  bool Go() {
    const auto threads = static_cast<size_t>(
        options_.threads > 0 ? options_.threads : std::max<int64_t>(1, std::thread::hardware_concurrency()));
    std::vector<std::thread> workers;
    for (size_t i = 0; i < threads; ++i) workers.emplace_back([this] { Work(); });
    for (std::thread& worker : workers) worker.join();
    const absl::MutexLock lock(&mutex_);
    Print("done");
    if (!failure_.empty()) std::printf("%s\n", failure_.c_str());
    return failure_.empty();
  }

 private:
  void Work() {
    const auto until = start_ + std::chrono::minutes(std::min<int64_t>(options_.minutes, 1'000'000));
    while (std::chrono::steady_clock::now() < until) {
      const uint64_t seed = next_.fetch_add(1);
      if (seed - static_cast<uint64_t>(options_.from) >= static_cast<uint64_t>(options_.seeds)) return;
      Tally tally;
      const absl::Status status = RunSeeds(KindOf(options_, seed), seed, 1, tally, options_.shrink != 0);
      const absl::MutexLock lock(&mutex_);
      tally_.Add(tally);
      if (!status.ok() && failure_.empty()) failure_ = std::string(status.message());
      if (!failure_.empty() || tally_.steps >= options_.steps) return;
      if (std::chrono::steady_clock::now() >= told_ + std::chrono::minutes(1)) Print("so far");
    }
  }

  void Print(const char* what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    told_ = std::chrono::steady_clock::now();
    std::printf("%s: %" PRId64 " seeds from %" PRId64 ", %" PRId64 " steps, in %" PRId64
                " of them waiting is looked at, %" PRId64 " failures, %" PRId64
                " cut off, the worst wait is %.3f of its bound, in seed %" PRIu64 ", %.0f s\n",
                what, tally_.seeds, options_.from, tally_.steps, tally_.quiet_steps, tally_.failures, tally_.cut_off,
                tally_.worst_wait, tally_.worst_seed, std::chrono::duration<double>(told_ - start_).count());
    std::printf("loaded: %" PRId64 " bytes; waited for modules: %" PRId64 " ticks; waited to begin: %" PRId64
                " ticks\n",
                tally_.moved_bytes, tally_.stalled, tally_.queued);
    std::fflush(stdout);
  }

  const Options options_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::atomic<uint64_t> next_;
  absl::Mutex mutex_;
  std::chrono::steady_clock::time_point told_ ABSL_GUARDED_BY(mutex_) = start_;
  Tally tally_ ABSL_GUARDED_BY(mutex_);
  std::string failure_ ABSL_GUARDED_BY(mutex_);
};

// One seed, told load by load.
int RunTraced(const Options& options) {
  const auto seed = static_cast<uint64_t>(*options.trace);
  Tally tally;
  const absl::Status status = RunScenario(MakeScenario(KindOf(options, seed), seed), seed, tally, /*trace=*/true);
  std::printf("%s\n", status.ok() ? "OK" : std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}

int Main(const std::vector<std::string>& arguments) {
  Options options;
  if (const absl::Status status = Parse(arguments, options); !status.ok()) {
    std::fprintf(stderr, "simulate: %s\n", std::string(status.message()).c_str());
    return 2;
  }
  if (!options.help.empty()) {
    std::fputs(options.help.c_str(), stdout);
    return 0;
  }
  if (options.trace) return RunTraced(options);
  return Run(options).Go() ? 0 : 1;
}

}  // namespace
}  // namespace ditserve::simulation

// An exception, of memory or of threads that are not to be had, ends it.
int main(int argc, char** argv) {  // NOLINT(bugprone-exception-escape)
  return ditserve::simulation::Main({argv + 1, argv + argc});
}
