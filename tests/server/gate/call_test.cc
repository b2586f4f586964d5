#include "server/gate/call.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>

namespace ditserve {
namespace {

void Append(PassingBytes& bytes, const std::string& text) {
  bytes.Append(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

std::string Take(PassingBytes& bytes, size_t most, uint64_t end) {
  std::string taken(most, '\0');
  taken.resize(bytes.Take(reinterpret_cast<uint8_t*>(taken.data()), most, end));
  return taken;
}

TEST(PassingBytesTest, GivesWhatStandsBeforeTheEndAndNoMore) {
  PassingBytes bytes;
  Append(bytes, "abcdef");
  EXPECT_EQ(Take(bytes, 10, 0), "");
  EXPECT_EQ(Take(bytes, 2, 4), "ab");
  EXPECT_EQ(Take(bytes, 10, 4), "cd");
  EXPECT_EQ(Take(bytes, 10, 4), "");
  Append(bytes, "gh");
  EXPECT_EQ(Take(bytes, 10, 100), "efgh");
  EXPECT_EQ(bytes.received(), 8u);
  EXPECT_EQ(bytes.taken(), 8u);
  EXPECT_TRUE(bytes.empty());
}

TEST(PassingBytesTest, FindsBytesByTheirPlaceInTheWhole) {
  PassingBytes bytes;
  Append(bytes, "abcdef");
  Take(bytes, 4, 4);
  EXPECT_FALSE(bytes.Find(3, 1));
  ASSERT_TRUE(bytes.Find(4, 2));
  EXPECT_EQ(**bytes.Find(5, 1), 'f');
  EXPECT_FALSE(bytes.Find(4, 3));
  EXPECT_FALSE(bytes.Find(7, 1));
}

TEST(PassingBytesTest, KeepsTheOrderHoweverItIsFedAndTaken) {
  std::mt19937 random(7);
  PassingBytes bytes;
  std::string sent, taken;
  while (sent.size() < 100'000) {
    std::string more(random() % 300, '\0');
    for (char& c : more) c = static_cast<char>(random());
    Append(bytes, more);
    sent += more;
    taken += Take(bytes, random() % 300, random() % (sent.size() + 1) + taken.size());
  }
  taken += Take(bytes, sent.size(), sent.size());
  EXPECT_EQ(taken, sent);
}

}  // namespace
}  // namespace ditserve
