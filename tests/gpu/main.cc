// Runs the tests of a GPU, and prints what they saw as a table; says so where there is no GPU.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "tests/gpu/gpu.h"

namespace ditserve {
namespace {

// A row a test, in Markdown.
class Table final : public ::testing::EmptyTestEventListener {
 public:
  explicit Table(std::string gpu) : gpu_(std::move(gpu)) {}

  void OnTestEnd(const ::testing::TestInfo& test) override {
    std::string seen;
    const ::testing::TestResult& result = *test.result();
    for (int i = 0; i < result.test_property_count(); ++i) {
      if (result.GetTestProperty(i).key() == std::string("seen")) seen = result.GetTestProperty(i).value();
    }
    rows_.push_back(
        absl::StrCat("| ", test.name(), " | ", result.Passed() ? "passed" : "**failed**", " | ", seen, " |"));
  }
  void OnTestProgramEnd(const ::testing::UnitTest&) override {
    std::printf("\nOn %s:\n\n| test | result | seen |\n| --- | --- | --- |\n", gpu_.c_str());
    for (const std::string& row : rows_) std::printf("%s\n", row.c_str());
  }

 private:
  const std::string gpu_;
  std::vector<std::string> rows_;
};

int Main(int argc, char** argv) {
  int64_t bytes = 0;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (absl::ConsumePrefix(&argument, "--hold=") && absl::SimpleAtoi(argument, &bytes)) return HoldMemory(bytes);
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
