#include "server/gate/turns.h"

#include <gtest/gtest.h>

#include <string>

namespace ditserve {
namespace {

TEST(TurnsTest, WhatHasBecomeReadyIsDoneBetweenTwo) {
  asio::io_context io;
  Turns turns(io);
  std::string done;
  for (const char name : {'a', 'b', 'c'}) {
    turns.Take([&io, &done, name] {
      done += name;
      asio::post(io, [&done] { done += '.'; });
    });
  }
  EXPECT_EQ(done, "");
  io.run();
  EXPECT_EQ(done, "a.b.c.");
}

TEST(TurnsTest, OneThatAsksForAnotherGetsTheLast) {
  asio::io_context io;
  Turns turns(io);
  std::string done;
  turns.Take([&] {
    done += 'a';
    turns.Take([&] { done += 'c'; });
  });
  turns.Take([&] { done += 'b'; });
  io.run();
  EXPECT_EQ(done, "abc");
}

}  // namespace
}  // namespace ditserve
