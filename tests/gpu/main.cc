// Runs the tests of a GPU, and prints what each saw when it ends, as a row of a table; says so where there is no GPU.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "tests/gpu/gpu.h"

namespace ditserve {
namespace {

// A row a test, in Markdown, at once: whatever ends the program later, what was seen is told.
class Table final : public ::testing::EmptyTestEventListener {
 public:
  explicit Table(std::string gpu) : gpu_(std::move(gpu)) {}

  void OnTestEnd(const ::testing::TestInfo& test) override {
    std::string seen;
    const ::testing::TestResult& result = *test.result();
    for (int i = 0; i < result.test_property_count(); ++i) {
      if (result.GetTestProperty(i).key() == std::string("seen")) seen = result.GetTestProperty(i).value();
    }
    std::printf("| %s | %s | %s |\n", test.name(), result.Passed() ? "passed" : "**failed**", seen.c_str());
    std::fflush(stdout);
  }
  void OnTestProgramStart(const ::testing::UnitTest&) override {
    std::printf("On %s:\n\n| test | result | seen |\n| --- | --- | --- |\n", gpu_.c_str());
    std::fflush(stdout);
  }

 private:
  const std::string gpu_;
};

int Main(int argc, char** argv) {
  int64_t left_bytes = 0;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (absl::ConsumePrefix(&argument, "--hold-all-but=") && absl::SimpleAtoi(argument, &left_bytes)) {
      return HoldMemory(left_bytes);
    }
  }
  ::testing::InitGoogleTest(&argc, argv);
  if (GTEST_FLAG_GET(list_tests)) return RUN_ALL_TESTS();
  const absl::StatusOr<std::string> gpu = FindGpu();
  if (absl::IsNotFound(gpu.status())) {
    std::printf("*** skipped: no device (%s). NOTHING WAS TESTED. ***\n", std::string(gpu.status().message()).c_str());
    return 0;
  }
  if (!gpu.ok()) {
    std::fprintf(stderr, "%s\n", gpu.status().ToString().c_str());
    return EXIT_FAILURE;
  }
  ::testing::UnitTest::GetInstance()->listeners().Append(new Table(*gpu));
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace ditserve

int main(int argc, char** argv) { return ditserve::Main(argc, argv); }
