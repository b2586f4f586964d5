#include "client/ditctl/flags.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace ditserve::ditctl {
namespace {

class FlagsTest : public ::testing::Test {
 protected:
  FlagsTest() {
    flags.Add("name", "NAME", "a name", &name);
    flags.Add("count", "N", "how many", &count);
    flags.Add("limit", "GIB", "at most", &limit);
    flags.AddSwitch("all", "everything", &all);
  }
  void ExpectRefused(const std::vector<std::string>& arguments, absl::string_view why) {
    const absl::Status status = flags.Parse(arguments);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), why);
  }

  std::string name = "default";
  int64_t count = 3;
  std::optional<double> limit;
  bool all = false;
  Flags flags{"do", "Does it."};
};

TEST_F(FlagsTest, TakesValuesBehindASpaceOrAnEqualsSign) {
  EXPECT_THAT(flags.Parse({"--name", "-a=b", "--count=-5", "--limit=0.5", "--all"}), IsOk());
  EXPECT_EQ(name, "-a=b");
  EXPECT_EQ(count, -5);
  EXPECT_EQ(limit, 0.5);
  EXPECT_TRUE(all);
}

TEST_F(FlagsTest, LeavesWhatIsNotGiven) {
  EXPECT_THAT(flags.Parse({}), IsOk());
  EXPECT_EQ(name, "default");
  EXPECT_EQ(count, 3);
  EXPECT_EQ(limit, std::nullopt);
}

TEST_F(FlagsTest, AnEmptyValueIsAValue) {
  EXPECT_THAT(flags.Parse({"--name="}), IsOk());
  EXPECT_EQ(name, "");
}

TEST_F(FlagsTest, RefusesByName) {
  ExpectRefused({"--nam", "x"}, "unknown flag --nam; valid: --name, --count, --limit, --all");
  ExpectRefused({"-n"}, "unknown flag -n; valid: --name, --count, --limit, --all");
  ExpectRefused({"--name"}, "--name needs a value: NAME");
  ExpectRefused({"--count", "many"}, "--count: expected an integer, found 'many'");
  ExpectRefused({"--count", "9223372036854775808"}, "--count: expected an integer, found '9223372036854775808'");
  ExpectRefused({"--limit=nan"}, "--limit: expected a number, found 'nan'");
  ExpectRefused({"--limit=inf"}, "--limit: expected a number, found 'inf'");
  ExpectRefused({"--all=yes"}, "--all: takes no value");
  ExpectRefused({"stray"}, "unexpected argument 'stray'");
}

TEST_F(FlagsTest, HelpGoesBeforeMistakes) {
  EXPECT_THAT(flags.Parse({"--count", "many", "--help"}), IsOk());
  EXPECT_TRUE(flags.help());
}

TEST_F(FlagsTest, UsageShowsTheFlagsInOrder) {
  std::string what;
  flags.AddPositional("WHAT", &what);
  EXPECT_EQ(flags.Usage(),
            "Does it.\n\nUsage: ditctl do [flags] [WHAT]\n"
            "  --name NAME                    a name\n"
            "  --count N                      how many\n"
            "  --limit GIB                    at most\n"
            "  --all                          everything\n");
}

}  // namespace
}  // namespace ditserve::ditctl
