#include "core/devices/host_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

constexpr int64_t kMiB = 1 << 20;

class HostMemoryTest : public ::testing::Test {
 protected:
  HostMemoryTest() {
    Write("proc/meminfo", "MemTotal:       1024000 kB\nMemFree:  1 kB\nMemAvailable:    512000 kB\n");
  }
  void Write(const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(root_ / path).parent_path());
    WriteFile(root_ / path, content);
  }
  MemoryStatus Read() {
    const absl::StatusOr<MemoryStatus> memory = ReadHostMemory(root_.path());
    EXPECT_THAT(memory, IsOk());
    return memory.value_or(MemoryStatus());
  }
  TempFolder root_;
};

TEST_F(HostMemoryTest, IsTheMachinesWhereNoGroupLimitsIt) {
  EXPECT_EQ(Read().total_bytes, int64_t{1024000} * 1024);
  EXPECT_EQ(Read().available_bytes, int64_t{512000} * 1024);
}

TEST_F(HostMemoryTest, IsTheControlGroupsWhereThatIsLess) {
  Write("proc/self/cgroup", "0::/pod/container\n");
  Write("sys/fs/cgroup/pod/container/memory.max", "max\n");
  Write("sys/fs/cgroup/pod/container/memory.current", "1\n");
  Write("sys/fs/cgroup/pod/memory.max", std::to_string(300 * kMiB));
  Write("sys/fs/cgroup/pod/memory.current", std::to_string(250 * kMiB));
  Write("sys/fs/cgroup/pod/memory.stat", "anon 5\ninactive_file " + std::to_string(20 * kMiB) + "\nactive_file 0\n");
  EXPECT_EQ(Read().total_bytes, 300 * kMiB);
  EXPECT_EQ(Read().available_bytes, 70 * kMiB) << "what the group's page cache holds can be dropped";
}

TEST_F(HostMemoryTest, TheRootGroupCountsToo) {
  Write("proc/self/cgroup", "0::/\n");
  Write("sys/fs/cgroup/memory.max", std::to_string(10 * kMiB));
  Write("sys/fs/cgroup/memory.current", std::to_string(4 * kMiB));
  EXPECT_EQ(Read().available_bytes, 6 * kMiB);
}

TEST_F(HostMemoryTest, AGroupOfVersion1CountsWithThoseBelowIt) {
  Write("proc/self/cgroup", "7:blkio:/\n4:memory:/pod/container\n0::/\n");
  Write("sys/fs/cgroup/memory/pod/container/memory.limit_in_bytes", "9223372036854771712\n");  // No limit.
  Write("sys/fs/cgroup/memory/pod/container/memory.usage_in_bytes", "1\n");
  Write("sys/fs/cgroup/memory/pod/memory.limit_in_bytes", std::to_string(300 * kMiB));
  Write("sys/fs/cgroup/memory/pod/memory.usage_in_bytes", std::to_string(250 * kMiB));
  Write("sys/fs/cgroup/memory/pod/memory.stat",
        "inactive_file 1\ntotal_inactive_file " + std::to_string(20 * kMiB) + "\ntotal_active_file 0\n");
  EXPECT_EQ(Read().total_bytes, 300 * kMiB);
  EXPECT_EQ(Read().available_bytes, 70 * kMiB);
}

TEST_F(HostMemoryTest, AContainerOfVersion1SeesItsGroupAsTheTopmost) {
  Write("proc/self/cgroup", "4:memory:/docker/859986f1\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", std::to_string(10 * kMiB));
  Write("sys/fs/cgroup/memory/memory.usage_in_bytes", std::to_string(4 * kMiB));
  EXPECT_EQ(Read().total_bytes, 10 * kMiB);
  EXPECT_EQ(Read().available_bytes, 6 * kMiB);
}

TEST_F(HostMemoryTest, NothingIsAvailableWhileTasksStandStill) {
  Write("proc/pressure/memory",
        "some avg10=50.00 avg60=0 avg300=0 total=1\nfull avg10=9.99 avg60=0 avg300=0 total=1\n");
  EXPECT_GT(Read().available_bytes, 0);
  Write("proc/pressure/memory",
        "some avg10=50.00 avg60=0 avg300=0 total=1\nfull avg10=10.00 avg60=0 avg300=0 total=1\n");
  EXPECT_EQ(Read().available_bytes, 0);
}

TEST_F(HostMemoryTest, WithoutMeminfoThereIsAnError) {
  EXPECT_THAT(ReadHostMemory(root_ / "nothing"), StatusIs(absl::StatusCode::kInternal, "MemTotal"));
}

TEST_F(HostMemoryTest, OwnMemoryIsWhatNobodyElseCouldUse) {
  Write("proc/self/status",
        "Name:\tditserve\nVmRSS:\t    9000 kB\nRssAnon:\t    7000 kB\nRssFile:\t    1500 kB\nRssShmem:\t     500 kB\n");
  EXPECT_EQ(OwnHostMemoryBytes(root_.path()), int64_t{7000} * 1024) << "files' pages are the page cache's";
  EXPECT_EQ(Read().own_bytes, int64_t{7000} * 1024);
}

TEST_F(HostMemoryTest, OwnMemoryThatTheKernelDoesNotTellIsNone) {
  EXPECT_EQ(OwnHostMemoryBytes(root_.path()), 0);
  EXPECT_EQ(Read().own_bytes, std::nullopt);
}

TEST_F(HostMemoryTest, WhatThisProcessWritesIsItsOwn) {
  const std::vector<char> written(64 * kMiB, 'x');
  const volatile char* const read = written.data();  // Or there need be no such memory.
  EXPECT_GT(OwnHostMemoryBytes(), 64 * kMiB);
  EXPECT_EQ(read[written.size() - 1], 'x');
}

TEST_F(HostMemoryTest, ThisMachineTellsItsMemory) {
  const absl::StatusOr<MemoryStatus> memory = ReadHostMemory();
  ASSERT_THAT(memory, IsOk());
  EXPECT_GT(memory->total_bytes, memory->available_bytes);
}

}  // namespace
}  // namespace ditserve
