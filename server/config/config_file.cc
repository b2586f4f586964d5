#include "server/config/config_file.h"

#include <cstddef>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "core/base/status_macros.h"
#include "core/storage/file.h"

namespace ditserve {
namespace {

constexpr int64_t kMaxBytes = 1 << 20;

absl::StatusOr<std::string> Read(const std::string& path) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, File::Open(path));
  if (file->size_bytes() > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file->name(), ": ", file->size_bytes(), " bytes; expected at most ", kMaxBytes));
  }
  std::string text(static_cast<size_t>(file->size_bytes()), '\0');
  DITSERVE_RETURN_IF_ERROR(file->ReadAt(0, absl::MakeSpan(reinterpret_cast<std::byte*>(text.data()), text.size())));
  return text;
}

}  // namespace

absl::StatusOr<std::string> ReadConfigFile(const std::string& path) {
  absl::StatusOr<std::string> text = Read(path);
  if (text.ok()) return text;
  // It names the file without its folder, for it does not know who reads.
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  return absl::Status(text.status().code(), (folder / std::string(text.status().message())).string());
}

}  // namespace ditserve
