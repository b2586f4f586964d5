#include "client/ditctl/vram_config.h"

#include <google/protobuf/util/json_util.h>

#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/storage/file.h"

namespace ditserve::ditctl {
namespace {

constexpr int64_t kMaxFileBytes = 1 << 20;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, File::Open(path));
  if (file->size_bytes() > kMaxFileBytes) return absl::InvalidArgumentError("--vram-config: larger than 1 MiB");
  std::string text(static_cast<size_t>(file->size_bytes()), '\0');
  DITSERVE_RETURN_IF_ERROR(file->ReadAt(0, absl::MakeSpan(reinterpret_cast<std::byte*>(text.data()), text.size())));
  return text;
}

}  // namespace

absl::StatusOr<v1::VramConfig> ParseVramConfig(const std::string& json_or_path) {
  std::string json = json_or_path;
  if (!absl::StartsWith(absl::StripLeadingAsciiWhitespace(json), "{")) {
    DITSERVE_ASSIGN_OR_RETURN(json, ReadFile(json_or_path));
  }
  v1::VramConfig config;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &config);
  if (status.ok()) return config;
  return absl::InvalidArgumentError(absl::StrCat("--vram-config: ", status.message().ToString()));
}

}  // namespace ditserve::ditctl
