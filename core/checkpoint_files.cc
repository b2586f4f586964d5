#include "core/checkpoint_files.h"

#include <fnmatch.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/file.h"
#include "core/status_macros.h"
#include "nlohmann/json.hpp"

namespace ditserve {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int kMaxShards = 10'000;

absl::Status RefusePickle(const std::string& name) {
  for (const absl::string_view suffix : {".bin", ".pt", ".pth", ".ckpt"}) {
    if (!absl::EndsWithIgnoreCase(name, suffix)) continue;
    return absl::InvalidArgumentError(absl::StrCat(name, ": a pickle checkpoint (", suffix,
                                                   ") can't be read in place and may run code when it is ",
                                                   "loaded; convert it to .safetensors"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const fs::path& path, int64_t max_bytes) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, File::Open(path.string()));
  if (file->size_bytes() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file->name(), " is ", file->size_bytes(), " bytes long; at most ", max_bytes, " are read"));
  }
  std::string text(static_cast<size_t>(file->size_bytes()), '\0');
  DITSERVE_RETURN_IF_ERROR(file->ReadAt(0, absl::MakeSpan(reinterpret_cast<std::byte*>(text.data()), text.size())));
  return text;
}

// A shard's name must not lead out of the folder.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos && name.find('\0') == std::string::npos;
}

absl::Status ReadIndex(const fs::path& path, CheckpointFiles& files) {
  files.index_name = path.filename().string();
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(files.index_name, ": ", what));
  };
  DITSERVE_ASSIGN_OR_RETURN(const std::string text, ReadText(path, kMaxIndexBytes));
  const nlohmann::json index = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return wrong("expected a JSON object with an object 'weight_map'");
  }
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || !IsPlainName(shard.get<std::string>())) {
      return wrong(absl::StrCat("the shard of tensor '", tensor, "' must be the name of a file in the same folder"));
    }
    DITSERVE_RETURN_IF_ERROR(RefusePickle(shard.get<std::string>()));
    files.weight_map[tensor] = shard.get<std::string>();
    shards.insert(shard.get<std::string>());
  }
  for (const std::string& shard : shards) files.shards.push_back((path.parent_path() / shard).string());
  return absl::OkStatus();
}

std::vector<fs::path> ListFolder(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code error;  // A folder that can't be listed holds nothing that could be opened.
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    paths.push_back(it->path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

absl::Status FindInFolder(const fs::path& folder, CheckpointFiles& files) {
  std::vector<fs::path> indices, tensors, pickles;
  for (const fs::path& path : ListFolder(folder)) {
    const std::string name = path.filename().string();
    if (absl::EndsWith(name, ".safetensors.index.json")) indices.push_back(path);
    if (absl::EndsWith(name, ".safetensors")) tensors.push_back(path);
    if (!RefusePickle(name).ok()) pickles.push_back(path);
  }
  if (indices.size() == 1) return ReadIndex(indices.front(), files);
  if (indices.empty() && tensors.size() == 1) {
    files.shards.push_back(tensors.front().string());
    return absl::OkStatus();
  }
  if (indices.empty() && tensors.empty() && !pickles.empty()) return RefusePickle(pickles.front().filename().string());
  return absl::InvalidArgumentError(absl::StrCat(
      "a checkpoint folder holds one *.safetensors.index.json with its shards, or one *.safetensors file; found ",
      indices.size(), " indices and ", tensors.size(), " .safetensors files"));
}

// The shards of `dir/name-0000{1-9}-of-00009.safetensors`.
absl::Status ExpandRange(const std::string& path, size_t open, size_t close, CheckpointFiles& files) {
  const std::pair<std::string, std::string> range =
      absl::StrSplit(path.substr(open + 1, close - open - 1), absl::MaxSplits('-', 1));
  int first = 0, last = 0;
  if (!absl::SimpleAtoi(range.first, &first) || !absl::SimpleAtoi(range.second, &last) || first < 0 || last < first ||
      last - first >= kMaxShards) {
    return absl::InvalidArgumentError(
        absl::StrCat("'{", range.first, "-", range.second, "}' is no range of shards such as {1-9}"));
  }
  for (int i = first; i <= last; ++i) {
    const std::string number = absl::StrFormat("%0*d", static_cast<int>(range.first.size()), i);
    files.shards.push_back(absl::StrCat(path.substr(0, open), number, path.substr(close + 1)));
  }
  return absl::OkStatus();
}

// Names that end in -i-of-n must be all of 1 to n.
absl::Status CheckComplete(const std::vector<std::string>& shards) {
  std::set<int> numbers;
  int total = 0;
  for (const std::string& shard : shards) {
    const std::string stem = fs::path(shard).stem().string();
    const size_t of = stem.rfind("-of-");
    if (of == std::string::npos) continue;
    const size_t dash = stem.rfind('-', of - 1);
    int number = 0, count = 0;
    if (dash == std::string::npos || !absl::SimpleAtoi(stem.substr(dash + 1, of - dash - 1), &number) ||
        !absl::SimpleAtoi(stem.substr(of + 4), &count)) {
      continue;
    }
    numbers.insert(number);
    total = std::max(total, count);
  }
  for (int i = 1; i <= std::min(total, kMaxShards); ++i) {
    if (numbers.count(i) == 0)
      return absl::InvalidArgumentError(absl::StrCat("shard ", i, " of ", total, " is missing"));
  }
  return absl::OkStatus();
}

absl::Status FindByPattern(const fs::path& pattern, CheckpointFiles& files) {
  const std::string name = pattern.filename().string();
  const fs::path folder = pattern.has_parent_path() ? pattern.parent_path() : fs::path(".");
  for (const fs::path& path : ListFolder(folder)) {
    if (fnmatch(name.c_str(), path.filename().c_str(), FNM_PERIOD) == 0) files.shards.push_back(path.string());
  }
  if (files.shards.empty()) return absl::NotFoundError(absl::StrCat("no file matches '", name, "'"));
  for (const std::string& shard : files.shards) DITSERVE_RETURN_IF_ERROR(RefusePickle(fs::path(shard).filename()));
  return CheckComplete(files.shards);
}

}  // namespace

absl::StatusOr<CheckpointFiles> FindCheckpointFiles(const std::string& path) {
  DITSERVE_RETURN_IF_ERROR(RefusePickle(fs::path(path).filename().string()));
  CheckpointFiles files;
  std::error_code error;
  fs::path folder = path;
  if (fs::is_directory(path, error)) {
    DITSERVE_RETURN_IF_ERROR(FindInFolder(path, files));
  } else {
    folder = fs::path(path).parent_path();
    const size_t open = path.rfind('{'), close = path.rfind('}');
    if (open != std::string::npos && close != std::string::npos && open < close) {
      DITSERVE_RETURN_IF_ERROR(ExpandRange(path, open, close, files));
      DITSERVE_RETURN_IF_ERROR(CheckComplete(files.shards));
    } else if (path.find('*') != std::string::npos) {
      DITSERVE_RETURN_IF_ERROR(FindByPattern(path, files));
    } else {
      files.shards.push_back(path);
    }
  }
  const fs::path config = folder / "config.json";
  if (fs::exists(config, error)) {
    DITSERVE_ASSIGN_OR_RETURN(files.config_json, ReadText(config, kMaxConfigBytes));
  }
  return files;
}

}  // namespace ditserve
