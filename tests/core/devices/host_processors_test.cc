#include "core/devices/host_processors.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

class HostProcessorsTest : public ::testing::Test {
 protected:
  void Write(const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(root_ / path).parent_path());
    WriteFile(root_ / path, content);
  }
  int Read() { return HostProcessors(root_.path()); }

  TempFolder root_;
  const int all_ = HostProcessors(root_.path());  // No group is told.
};

TEST_F(HostProcessorsTest, AreThoseThatTheProcessMayRunOn) {
  int on_one = 0;
  std::thread([&] {
    cpu_set_t allowed, one;
    ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    EXPECT_EQ(all_, CPU_COUNT(&allowed));
    CPU_ZERO(&one);
    int first = 0;
    while (!CPU_ISSET(first, &allowed)) ++first;
    CPU_SET(first, &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);  // Of this thread alone.
    on_one = Read();
  }).join();
  EXPECT_EQ(on_one, 1);
}

TEST_F(HostProcessorsTest, AreNoMoreThanTheTimeOfAGroupAllowsRoundedUp) {
  Write("proc/self/cgroup", "0::/pod/container\n");
  Write("sys/fs/cgroup/pod/container/cpu.max", "max 100000\n");
  EXPECT_EQ(Read(), all_);
  Write("sys/fs/cgroup/pod/cpu.max", "150000 100000\n");
  EXPECT_EQ(Read(), std::min(all_, 2));
  Write("sys/fs/cgroup/pod/cpu.max", "100000 100000\n");
  EXPECT_EQ(Read(), 1);
  Write("sys/fs/cgroup/pod/cpu.max", "10000 100000\n");
  EXPECT_EQ(Read(), 1);
  Write("sys/fs/cgroup/pod/cpu.max", "max 100000\n");
  Write("sys/fs/cgroup/cpu.max", "20000 50000\n");
  EXPECT_EQ(Read(), 1) << "the topmost counts too";
}

TEST_F(HostProcessorsTest, AGroupOfVersion1HasItsQuotaInAFileOfItsOwn) {
  Write("proc/self/cgroup", "7:cpuset:/other\n4:cpu,cpuacct:/pod\n0::/\n");
  Write("sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us", "-1\n");
  Write("sys/fs/cgroup/cpu/pod/cpu.cfs_period_us", "100000\n");
  Write("sys/fs/cgroup/cpuset/other/cpu.max", "1 1\n");
  EXPECT_EQ(Read(), all_);
  Write("sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us", "50000\n");
  EXPECT_EQ(Read(), 1);
}

TEST_F(HostProcessorsTest, WhatCannotBeReadLimitsNothing) {
  Write("proc/self/cgroup", "garbage\n0:\n0::\n0::/pod\n");
  for (const char* const text : {"", "max", "1", "-5 100", "5 0", "a b", "99999999999999999999 1"}) {
    Write("sys/fs/cgroup/pod/cpu.max", text);
    EXPECT_EQ(Read(), all_) << text;
  }
}

}  // namespace
}  // namespace ditserve
