#include "core/storage/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "tests/testing/faulty_file_calls.h"
#include "tests/testing/safetensors_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;

constexpr absl::StatusCode kDataLoss = absl::StatusCode::kDataLoss;
constexpr absl::StatusCode kUnavailable = absl::StatusCode::kUnavailable;
constexpr int64_t kBytes = 3 * File::kAlignment + 1234;

// Aligned memory for a direct read.
class Slot {
 public:
  explicit Slot(int64_t size)
      : size_(static_cast<size_t>(size + 2 * File::kAlignment)),
        data_(static_cast<std::byte*>(::operator new (size_, std::align_val_t{File::kAlignment}))) {}
  ~Slot() { ::operator delete (data_, std::align_val_t{File::kAlignment}); }
  absl::Span<std::byte> span() const { return {data_, size_}; }

 private:
  size_t size_;
  std::byte* data_;
};

// A file of kBytes bytes, last modified long ago so that any write shows.
class FileTest : public ::testing::Test {
 protected:
  FileTest() : content_(FixtureBytes("content", kBytes)) {
    WriteFile(path_, content_);
    const struct timespec long_ago[2] = {{1'000'000'000, 0}, {1'000'000'000, 0}};
    EXPECT_EQ(utimensat(AT_FDCWD, path_.c_str(), long_ago, 0), 0);
  }

  std::unique_ptr<File> Open() {
    absl::StatusOr<std::unique_ptr<File>> file = File::Open(path_, calls_);
    EXPECT_THAT(file, IsOk());
    return *std::move(file);
  }

  static absl::StatusOr<std::string> Read(const File& file, int64_t offset, int64_t size) {
    std::string bytes(static_cast<size_t>(size), '\0');
    DITSERVE_RETURN_IF_ERROR(
        file.ReadAt(offset, absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size())));
    return bytes;
  }

  static absl::StatusOr<std::string> ReadDirect(const File& file, int64_t offset, int64_t size) {
    const Slot slot(size);
    DITSERVE_ASSIGN_OR_RETURN(const absl::Span<const std::byte> read, file.ReadDirect(offset, size, slot.span()));
    return std::string(reinterpret_cast<const char*>(read.data()), read.size());
  }

  const TempFolder folder_;
  const std::string path_ = folder_ / "x.safetensors";
  const std::string content_;
  FaultyFileCalls calls_;
};

TEST_F(FileTest, KnowsItsNameAndSize) {
  const std::unique_ptr<File> file = Open();
  EXPECT_EQ(file->name(), "x.safetensors");
  EXPECT_EQ(file->size_bytes(), kBytes);
}

TEST_F(FileTest, IsNotFoundWhereThereIsNone) {
  const absl::Status status = File::Open(folder_ / "none").status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kNotFound, "none: No such file or directory"));
  EXPECT_THAT(std::string(status.message()), ::testing::Not(::testing::HasSubstr(folder_.path())));
  EXPECT_THAT(File::Open(path_ + "/none"), StatusIs(absl::StatusCode::kNotFound, "none: Not a directory"));
}

TEST_F(FileTest, MustBeRegular) {
  std::filesystem::create_directory(folder_ / "folder");
  EXPECT_THAT(File::Open(folder_ / "folder"),
              StatusIs(absl::StatusCode::kInvalidArgument, "folder: not a regular file"));
  ASSERT_EQ(mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(File::Open(folder_ / "pipe"), StatusIs(absl::StatusCode::kInvalidArgument, "pipe: not a regular file"));
  EXPECT_THAT(File::Open("/dev/null"), StatusIs(absl::StatusCode::kInvalidArgument, "null: not a regular file"));
}

TEST_F(FileTest, IsReadThroughALink) {
  std::filesystem::create_symlink(path_, folder_ / "link");
  const absl::StatusOr<std::unique_ptr<File>> file = File::Open(folder_ / "link");
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ((*file)->name(), "link");
  EXPECT_EQ(*Read(**file, 5, 10), content_.substr(5, 10));
}

TEST_F(FileTest, ReadsExactlyTheBytesAskedFor) {
  const std::unique_ptr<File> file = Open();
  EXPECT_EQ(*Read(*file, 0, kBytes), content_);
  EXPECT_EQ(*Read(*file, 17, 4000), content_.substr(17, 4000));
  EXPECT_EQ(*Read(*file, kBytes, 0), "");
}

// Direct reads, and what takes their place where the file system has none.
class DirectReadTest : public FileTest, public ::testing::WithParamInterface<bool> {
 protected:
  DirectReadTest() {
    if (!GetParam()) calls_.RefuseDirectReads();
  }
};

INSTANTIATE_TEST_SUITE_P(Allowed, DirectReadTest, ::testing::Values(true));
INSTANTIATE_TEST_SUITE_P(Refused, DirectReadTest, ::testing::Values(false));

TEST_P(DirectReadTest, ReadsAtAnyOffsetUpToTheEnd) {
  const std::unique_ptr<File> file = Open();
  constexpr int64_t kBlock = File::kAlignment;
  const int64_t places[] = {0, 1, 7, kBlock - 1, kBlock, kBlock + 1, 2 * kBlock + 5, 3 * kBlock, kBytes - 1, kBytes};
  for (const int64_t begin : places) {
    for (const int64_t end : places) {
      if (end < begin) continue;
      const absl::StatusOr<std::string> read = ReadDirect(*file, begin, end - begin);
      ASSERT_THAT(read, IsOk()) << begin << " to " << end;
      ASSERT_EQ(*read, content_.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    }
  }
  if (!GetParam()) {
    EXPECT_EQ(calls_.direct_reads(), 0);
  }
}

TEST_P(DirectReadTest, ContinuesShortReads) {
  const std::unique_ptr<File> file = Open();
  for (const size_t bytes : {File::kAlignment, File::kAlignment + 512}) {
    calls_.ShortenReads(static_cast<size_t>(bytes));
    const absl::StatusOr<std::string> read = ReadDirect(*file, 3, kBytes - 3);
    ASSERT_THAT(read, IsOk());
    EXPECT_EQ(*read, content_.substr(3));
  }
}

TEST_P(DirectReadTest, BeyondTheEndIsDataLoss) {
  const std::unique_ptr<File> file = Open();
  EXPECT_THAT(ReadDirect(*file, kBytes - 10, 11),
              StatusIs(kDataLoss, absl::StrCat("x.safetensors: the file ends at byte ", kBytes)));
  EXPECT_THAT(ReadDirect(*file, kBytes + 100'000, 1), StatusIs(kDataLoss, "x.safetensors: the file ends at byte"));
}

TEST_P(DirectReadTest, TruncationIsDataLoss) {
  const std::unique_ptr<File> file = Open();
  std::filesystem::resize_file(path_, 5000);
  EXPECT_THAT(ReadDirect(*file, 4096, 4096), StatusIs(kDataLoss, "x.safetensors: the file was cut or extended"));
  EXPECT_THAT(ReadDirect(*file, 0, 10), StatusIs(kDataLoss, "x.safetensors: the file was cut or extended"));
}

TEST_P(DirectReadTest, AChangeDuringTheReadIsDataLoss) {
  const std::unique_ptr<File> file = Open();
  calls_.AfterNextRead([this] { WriteFile(path_, FixtureBytes("another", kBytes)); });
  EXPECT_THAT(ReadDirect(*file, 100, 1000), StatusIs(kDataLoss, "x.safetensors: the file was rewritten"));
}

TEST_F(FileTest, ShortBufferedReadsAreContinuedByteByByte) {
  const std::unique_ptr<File> file = Open();
  calls_.ShortenReads(1);
  EXPECT_EQ(*Read(*file, 10, 300), content_.substr(10, 300));
}

TEST_F(FileTest, InterruptedReadsGoOn) {
  const std::unique_ptr<File> file = Open();
  calls_.FailReads(100, EINTR);
  EXPECT_EQ(*Read(*file, 1, 10), content_.substr(1, 10));
}

TEST_F(FileTest, ADiskThatFailsTwiceIsForgiven) {
  const std::unique_ptr<File> file = Open();
  calls_.FailReads(2, EIO);
  EXPECT_EQ(*Read(*file, 1, 10), content_.substr(1, 10));
  calls_.FailReads(2, EIO);
  EXPECT_EQ(*ReadDirect(*file, 1, 10), content_.substr(1, 10));
}

TEST_F(FileTest, ThePauseBeforeAFailingDiskIsAskedAgainGrows) {
  const std::unique_ptr<File> file = Open();
  calls_.FailReads(2, EIO);
  EXPECT_THAT(Read(*file, 1, 10), IsOk());
  EXPECT_THAT(calls_.pauses(), ElementsAre(absl::Milliseconds(50), absl::Milliseconds(200)));
}

TEST_F(FileTest, ADiskThatGoesOnFailingIsUnavailableUntilItRecovers) {
  const std::unique_ptr<File> file = Open();
  const int64_t before = calls_.reads();
  calls_.FailReads(3, EIO);
  EXPECT_THAT(Read(*file, 1, 10), StatusIs(kUnavailable, "x.safetensors: Input/output error"));
  EXPECT_EQ(calls_.reads() - before, 3);
  calls_.FailReads(3, EIO);
  EXPECT_THAT(ReadDirect(*file, 1, 10), StatusIs(kUnavailable, "x.safetensors: Input/output error"));
  EXPECT_EQ(*Read(*file, 1, 10), content_.substr(1, 10));
}

TEST_F(FileTest, AStaleHandleIsDataLoss) {
  const std::unique_ptr<File> file = Open();
  calls_.FailReads(3, ESTALE);
  calls_.FailStats(1, ESTALE);
  EXPECT_THAT(Read(*file, 1, 10), StatusIs(kDataLoss, "x.safetensors: Stale file handle"));
}

TEST_F(FileTest, IsUnavailableWhenItCannotBeLookedAt) {
  const std::unique_ptr<File> file = Open();
  calls_.FailStats(1, EIO);
  EXPECT_THAT(Read(*file, 1, 10), StatusIs(kUnavailable, "x.safetensors: Input/output error"));
  calls_.FailStats(1, EIO);
  EXPECT_THAT(File::Open(path_, calls_), StatusIs(kUnavailable, "x.safetensors: Input/output error"));
}

TEST_F(FileTest, TruncationIsDataLossEvenWhenTheDiskFailsToo) {
  const std::unique_ptr<File> file = Open();
  std::filesystem::resize_file(path_, 5000);
  calls_.FailReads(3, EIO);
  EXPECT_THAT(Read(*file, 0, 10), StatusIs(kDataLoss, "x.safetensors: the file was cut or extended"));
}

TEST_F(FileTest, GrowthIsDataLoss) {
  const std::unique_ptr<File> file = Open();
  std::filesystem::resize_file(path_, kBytes + 1);
  EXPECT_THAT(Read(*file, 0, 10), StatusIs(kDataLoss, "x.safetensors: the file was cut or extended"));
}

TEST_F(FileTest, RewritingAtTheSameSizeIsDataLoss) {
  const std::unique_ptr<File> file = Open();
  WriteFile(path_, FixtureBytes("another", kBytes));
  EXPECT_THAT(Read(*file, 0, 10), StatusIs(kDataLoss, "x.safetensors: the file was rewritten"));
}

TEST_F(FileTest, RewritingInPlaceIsDataLossWithTheOldTimeToo) {
  const std::unique_ptr<File> file = Open();
  const auto modified = std::filesystem::last_write_time(path_);
  std::fstream(path_, std::ios::in | std::ios::out) << "other";
  std::filesystem::last_write_time(path_, modified);
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(Read(*file, 0, 10), StatusIs(kDataLoss, "x.safetensors: the file was rewritten"));
  }
}

TEST_F(FileTest, UnlinkingIsDataLoss) {
  const std::unique_ptr<File> file = Open();
  std::filesystem::remove(path_);
  EXPECT_THAT(Read(*file, 0, 10), StatusIs(kDataLoss, "x.safetensors: the file was removed or replaced"));
}

TEST_F(FileTest, ReplacementByRenameIsDataLoss) {
  const std::unique_ptr<File> file = Open();
  WriteFile(folder_ / "new", content_);
  std::filesystem::rename(folder_ / "new", path_);
  EXPECT_THAT(Read(*file, 0, 10), StatusIs(kDataLoss, "x.safetensors: the file was removed or replaced"));
}

TEST_F(FileTest, NewPermissionsAndNamesDoNoHarm) {
  const std::unique_ptr<File> file = Open();
  ASSERT_EQ(chmod(path_.c_str(), 0400), 0);
  std::filesystem::create_hard_link(path_, folder_ / "second");
  std::filesystem::rename(path_, folder_ / "renamed");
  EXPECT_EQ(*Read(*file, 0, 10), content_.substr(0, 10));
}

}  // namespace
}  // namespace ditserve
