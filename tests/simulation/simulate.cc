// Runs seeds of the residency policy's simulator, on all cores, until they are done or time is up, and tells what came
// of them.
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "tests/simulation/run.h"

namespace ditserve::simulation {
namespace {

constexpr char kUsage[] =
    "usage: simulate [--kind=calm|faults|refusals|real] [--from=SEED] [--seeds=N] [--steps=N] [--minutes=N]\n"
    "                [--threads=N] [--shrink=0] [--trace=SEED]\n"
    "Without --kind the small ones take turns, and a real one comes every 2,000 seeds. Ends after that many seeds, "
    "steps\n"
    "or minutes, whichever is first; at the first failure it shrinks it and exits 1. --trace runs one seed and prints\n"
    "what is loaded.\n";

struct Options {
  int kind = -1;
  uint64_t from = 1;
  int64_t seeds = INT64_MAX, steps = INT64_MAX, minutes = INT64_MAX;
  int64_t threads = 0;
  bool shrinks = true, trace = false;
};

bool Parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const size_t equals = arg.find('=');
    if (equals == std::string::npos) return false;
    const std::string name = arg.substr(0, equals), value = arg.substr(equals + 1);
    const int64_t number = std::atoll(value.c_str());
    if (name == "--from" || name == "--trace") {
      options.from = static_cast<uint64_t>(number);
      options.trace = name == "--trace";
    } else if (name == "--seeds") {
      options.seeds = number;
    } else if (name == "--steps") {
      options.steps = number;
    } else if (name == "--minutes") {
      options.minutes = number;
    } else if (name == "--threads") {
      options.threads = number;
    } else if (name == "--shrink") {
      options.shrinks = number != 0;
    } else if (name == "--kind") {
      for (const Kind kind : kKinds) {
        if (value == std::string(Name(kind))) options.kind = static_cast<int>(kind);
      }
      if (options.kind < 0) return false;
    } else {
      return false;
    }
  }
  return true;
}

Kind KindOf(const Options& options, uint64_t seed) {
  constexpr uint64_t kRealEvery = 2000;
  if (options.kind >= 0) return static_cast<Kind>(options.kind);
  return seed % kRealEvery == kRealEvery - 1 ? Kind::kReal : kKinds[seed % 3];
}

class Run {
 public:
  explicit Run(const Options& options) : options_(options), next_(options.from) {}

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
      if (seed - options_.from >= static_cast<uint64_t>(options_.seeds)) return;
      Tally tally;
      const absl::Status status = RunSeeds(KindOf(options_, seed), seed, 1, tally, options_.shrinks);
      const absl::MutexLock lock(&mutex_);
      tally_.Add(tally);
      if (!status.ok() && failure_.empty()) failure_ = std::string(status.message());
      if (!failure_.empty() || tally_.steps >= options_.steps) return;
      if (std::chrono::steady_clock::now() >= told_ + std::chrono::minutes(1)) Print("so far");
    }
  }

  void Print(const char* what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    told_ = std::chrono::steady_clock::now();
    std::printf("%s: %" PRId64 " seeds from %" PRIu64 ", %" PRId64 " steps, in %" PRId64
                " of them waiting is looked at, %" PRId64 " failures, %" PRId64
                " cut off, the worst wait is %.3f of its bound, in seed %" PRIu64 ", %.0f s\n",
                what, tally_.seeds, options_.from, tally_.steps, tally_.quiet_steps, tally_.failures, tally_.cut_off,
                tally_.worst_wait, tally_.worst_seed, std::chrono::duration<double>(told_ - start_).count());
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

int Main(int argc, char** argv) {
  Options options;
  if (!Parse(argc, argv, options)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  if (!options.trace) return Run(options).Go() ? 0 : 1;
  Tally tally;
  const absl::Status status =
      RunScenario(MakeScenario(KindOf(options, options.from), options.from), options.from, tally, /*trace=*/true);
  std::printf("%s\n", status.ok() ? "OK" : std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace ditserve::simulation

int main(int argc, char** argv) { return ditserve::simulation::Main(argc, argv); }
