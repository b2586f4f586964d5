#include "core/base/quoted.h"

#include <gtest/gtest.h>

namespace ditserve {
namespace {

TEST(ShortenedTest, CutsBetweenCharacters) {
  EXPECT_EQ(Shortened("abcdef", 6), "abcdef");
  EXPECT_EQ(Shortened("abcdefg", 6), "abc...");
  EXPECT_EQ(Shortened("ab\u00e9\u00e9\u00e9", 6), "ab...") << "the third byte is within a character";
  EXPECT_EQ(Shortened("a\u00e9\u00e9\u00e9", 6), "a\u00e9...");
}

TEST(QuotedTest, EscapesWhatIsNotToBeRead) {
  EXPECT_EQ(Quoted("a \"b\"\n\x1b\u00e9"), "\"a \\\"b\\\"\\n\\033\u00e9\"");
  EXPECT_EQ(Quoted(std::string(200, 'x')), "\"" + std::string(77, 'x') + "...\"");
}

}  // namespace
}  // namespace ditserve
