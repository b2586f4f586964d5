#include "core/base/flags.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

class FlagsTest : public ::testing::Test {
 protected:
  FlagsTest() {
    AddFlag(app, "name", "NAME", "a name", &name);
    AddFlag(app, "count", "N", "how many", &count);
    AddFlag(app, "limit", "GIB", "at most", &limit);
    AddFlag(app, "word", "WORD", "one of several", &words);
    app.add_flag("--all", all, "everything");
  }
  absl::Status Parse(const std::vector<std::string>& arguments) { return ParseFlags(app, arguments, &help); }
  void ExpectRefused(const std::vector<std::string>& arguments, absl::string_view why) {
    const absl::Status status = Parse(arguments);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), why);
  }

  CLI::App app{"Does it.", "ditctl do"};
  std::string name = "default", help;
  int64_t count = 3;
  std::optional<double> limit;
  std::vector<std::string> words;
  bool all = false;
};

TEST_F(FlagsTest, TakesValuesBehindASpaceOrAnEqualsSign) {
  EXPECT_THAT(Parse({"--name", "-a=b", "--count=-5", "--limit=0.5", "--all"}), IsOk());
  EXPECT_EQ(name, "-a=b");
  EXPECT_EQ(count, -5);
  EXPECT_EQ(limit, 0.5);
  EXPECT_TRUE(all);
  EXPECT_EQ(help, "");
}

TEST_F(FlagsTest, LeavesWhatIsNotGiven) {
  EXPECT_THAT(Parse({}), IsOk());
  EXPECT_EQ(name, "default");
  EXPECT_EQ(count, 3);
  EXPECT_EQ(limit, std::nullopt);
  EXPECT_TRUE(words.empty());
}

TEST_F(FlagsTest, AnEmptyValueIsAValueAndNotTheNextArgument) {
  EXPECT_THAT(Parse({"--name=", "--all"}), IsOk());
  EXPECT_EQ(name, "");
  EXPECT_TRUE(all);
  ExpectRefused({"--name=", "x"}, "unexpected argument 'x'");
  ExpectRefused({"--count="}, "--count: expected an integer, found ''");
}

TEST_F(FlagsTest, TheLastOfOneFlagCountsAndAllOfAList) {
  EXPECT_THAT(Parse({"--count", "1", "--word", "a", "--count=2", "--word=b=c", "--word="}), IsOk());
  EXPECT_EQ(count, 2);
  EXPECT_EQ(words, (std::vector<std::string>{"a", "b=c", ""}));
}

TEST_F(FlagsTest, NumbersAreDecimal) {
  EXPECT_THAT(Parse({"--count=010"}), IsOk());
  EXPECT_EQ(count, 10);
}

TEST_F(FlagsTest, RefusesByName) {
  ExpectRefused({"--nam", "x"}, "unknown flag --nam; valid: --help, --name, --count, --limit, --word, --all");
  ExpectRefused({"--nam=x"}, "unknown flag --nam; valid: --help, --name, --count, --limit, --word, --all");
  ExpectRefused({"-n"}, "unknown flag -n; valid: --help, --name, --count, --limit, --word, --all");
  ExpectRefused({"--name"}, "--name: 1 required NAME missing");
  ExpectRefused({"--count", "many"}, "--count: expected an integer, found 'many'");
  ExpectRefused({"--count", "0x10"}, "--count: expected an integer, found '0x10'");
  ExpectRefused({"--count", "9223372036854775808"}, "--count: expected an integer, found '9223372036854775808'");
  ExpectRefused({"--limit=nan"}, "--limit: expected a number, found 'nan'");
  ExpectRefused({"--limit=inf"}, "--limit: expected a number, found 'inf'");
  ExpectRefused({"--all=yes"}, "--all: takes no value");
  ExpectRefused({"--all=false"}, "--all: takes no value");
  ExpectRefused({"stray"}, "unexpected argument 'stray'");
}

TEST_F(FlagsTest, HelpGoesBeforeUnknownFlagsAndShowsTheFlagsInOrder) {
  std::string what;
  app.add_option("WHAT", what, "a thing")->type_name("");
  EXPECT_THAT(Parse({"--nam", "x", "--help"}), IsOk());
  EXPECT_EQ(help,
            "Does it.\nUsage: ditctl do [OPTIONS] [WHAT]\n\n"
            "Positionals:\n"
            "  WHAT                          a thing\n\n"
            "Options:\n"
            "  -h,--help                     Print this help message and exit\n"
            "  --name NAME                   a name\n"
            "  --count N                     how many\n"
            "  --limit GIB                   at most\n"
            "  --word WORD                   one of several\n"
            "  --all                         everything\n\n");
}

}  // namespace
}  // namespace ditserve
