#include "core/storage/checkpoint_files.h"

#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"
#include "core/storage/file.h"
#include "core/storage/json_reader.h"

namespace ditserve {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int kMaxShards = 10'000;

bool IsPickle(absl::string_view name) {
  constexpr std::array<absl::string_view, 4> kSuffixes = {".bin", ".pt", ".pth", ".ckpt"};
  return std::any_of(kSuffixes.begin(), kSuffixes.end(),
                     [&](absl::string_view suffix) { return absl::EndsWithIgnoreCase(name, suffix); });
}

absl::Status RefusePickle(absl::string_view name) {
  if (!IsPickle(name)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(Printable(name),
                   " is a pickle checkpoint; checkpoints are .safetensors only: it can be read in place and runs no "
                   "code"));
}

absl::StatusOr<std::string> ReadText(const fs::path& path, int64_t max_bytes) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, File::Open(path.string()));
  if (file->size_bytes() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file->name(), ": ", file->size_bytes(), " bytes long, at most ", max_bytes, " are read"));
  }
  std::string text(static_cast<size_t>(file->size_bytes()), '\0');
  DITSERVE_RETURN_IF_ERROR(file->ReadAt(0, absl::MakeSpan(reinterpret_cast<std::byte*>(text.data()), text.size())));
  return text;
}

// Whether it names a file in the folder itself.
bool IsPlainName(absl::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('\0') == absl::string_view::npos &&
         name.find_first_of("/\\") == absl::string_view::npos;
}

// {"metadata": anything, "weight_map": {tensor: shard}}
class IndexReader final : public JsonReader {
 public:
  std::optional<std::map<std::string, std::string>>& weight_map() { return weight_map_; }

 private:
  absl::Status OnValue(JsonValue value) override {
    if (path().size() == 1 && path()[0] == "weight_map") {
      if (value.kind != JsonValue::Kind::kObject) return absl::InvalidArgumentError("weight_map must be an object");
      weight_map_.emplace();
    }
    if (path().size() != 2 || path()[0] != "weight_map") return absl::OkStatus();
    if (value.kind != JsonValue::Kind::kString || !IsPlainName(value.text)) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", Printable(path()[1]), "': its shard must be the name of a file in the same folder"));
    }
    DITSERVE_RETURN_IF_ERROR(RefusePickle(value.text));
    weight_map_->emplace(path()[1], std::move(value.text));
    return absl::OkStatus();
  }

  std::optional<std::map<std::string, std::string>> weight_map_;
};

absl::Status ReadIndex(const fs::path& path, CheckpointFiles& files) {
  files.index_name = path.filename().string();
  DITSERVE_ASSIGN_OR_RETURN(const std::string text, ReadText(path, kMaxIndexBytes));
  absl::StatusOr<std::map<std::string, std::string>> weight_map = ParseCheckpointIndex(text);
  if (!weight_map.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(files.index_name, ": ", weight_map.status().message()));
  }
  files.weight_map = *std::move(weight_map);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : files.weight_map) shards.insert(shard);
  for (const std::string& shard : shards) files.shards.push_back((path.parent_path() / shard).string());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<fs::path>> ListFolder(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    paths.push_back(it->path());
  }
  if (error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory) {
    return absl::NotFoundError("the checkpoint's folder does not exist");
  }
  if (error) return absl::UnavailableError(absl::StrCat("listing the checkpoint's folder: ", error.message()));
  std::sort(paths.begin(), paths.end());
  return paths;
}

absl::Status FindInFolder(const fs::path& folder, CheckpointFiles& files) {
  DITSERVE_ASSIGN_OR_RETURN(const std::vector<fs::path> paths, ListFolder(folder));
  std::vector<fs::path> indices, tensors, pickles;
  for (const fs::path& path : paths) {
    const std::string name = path.filename().string();
    if (absl::EndsWith(name, ".safetensors.index.json")) indices.push_back(path);
    if (absl::EndsWith(name, ".safetensors")) tensors.push_back(path);
    if (IsPickle(name)) pickles.push_back(path);
  }
  if (indices.size() == 1) return ReadIndex(indices.front(), files);
  if (indices.empty() && tensors.size() == 1) {
    files.shards.push_back(tensors.front().string());
    return absl::OkStatus();
  }
  if (indices.empty() && tensors.empty() && !pickles.empty()) return RefusePickle(pickles.front().filename().string());
  return absl::InvalidArgumentError(
      absl::StrCat("a checkpoint folder holds one *.safetensors.index.json with its shards, or one *.safetensors file; "
                   "found ",
                   indices.size(), " indices and ", tensors.size(),
                   " .safetensors files (shards without an index are named by a pattern such as model-*.safetensors)"));
}

// The digits of shard names as a number; nullopt for anything else.
std::optional<int> ShardNumber(absl::string_view text) {
  int number = 0;
  if (!std::all_of(text.begin(), text.end(), absl::ascii_isdigit)) return std::nullopt;
  return absl::SimpleAtoi(text, &number) ? std::optional(number) : std::nullopt;
}

// The shards of `dir/name-0000{1-9}-of-00009.safetensors`, whose braces stand at `open` and `close`.
absl::Status ExpandRange(const std::string& path, size_t open, size_t close, CheckpointFiles& files) {
  const std::string range = path.substr(open + 1, close - open - 1);
  const std::pair<std::string, std::string> ends = absl::StrSplit(range, absl::MaxSplits('-', 1));
  const std::optional<int> first = ShardNumber(ends.first), last = ShardNumber(ends.second);
  if (!first || !last || *last < *first || *last - *first >= kMaxShards) {
    return absl::InvalidArgumentError(absl::StrCat("'{", Printable(range), "}' is no range of shards such as {1-9}"));
  }
  for (int64_t i = *first; i <= *last; ++i) {
    const std::string number = absl::StrFormat("%0*d", static_cast<int>(ends.first.size()), i);
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
    const std::vector<absl::string_view> parts = absl::StrSplit(stem, '-');
    if (parts.size() < 3 || parts[parts.size() - 2] != "of") continue;
    const std::optional<int> number = ShardNumber(parts[parts.size() - 3]), count = ShardNumber(parts.back());
    if (!number || !count) continue;
    numbers.insert(*number);
    total = std::max(total, *count);
  }
  for (int i = 1; i <= total; ++i) {
    if (!numbers.contains(i)) {
      return absl::InvalidArgumentError(absl::StrCat("shard ", i, " of ", total, " is missing"));
    }
  }
  return absl::OkStatus();
}

absl::Status FindByPattern(const fs::path& pattern, CheckpointFiles& files) {
  const std::string name = pattern.filename().string();
  DITSERVE_ASSIGN_OR_RETURN(const std::vector<fs::path> paths,
                            ListFolder(pattern.has_parent_path() ? pattern.parent_path() : fs::path(".")));
  for (const fs::path& path : paths) {
    if (fnmatch(name.c_str(), path.filename().c_str(), FNM_PERIOD) != 0) continue;
    DITSERVE_RETURN_IF_ERROR(RefusePickle(path.filename().string()));
    files.shards.push_back(path.string());
  }
  if (files.shards.empty()) return absl::NotFoundError(absl::StrCat("no file matches '", Printable(name), "'"));
  return absl::OkStatus();
}

absl::Status FindShards(const std::string& path, CheckpointFiles& files) {
  DITSERVE_RETURN_IF_ERROR(RefusePickle(fs::path(path).filename().string()));
  const size_t open = path.rfind('{'), close = path.rfind('}');
  if (open != std::string::npos && close != std::string::npos && open < close) {
    DITSERVE_RETURN_IF_ERROR(ExpandRange(path, open, close, files));
  } else if (path.find('*') != std::string::npos) {
    DITSERVE_RETURN_IF_ERROR(FindByPattern(path, files));
  } else {
    files.shards.push_back(path);
    return absl::OkStatus();
  }
  return CheckComplete(files.shards);
}

}  // namespace

absl::StatusOr<CheckpointFiles> FindCheckpointFiles(const std::string& path) {
  CheckpointFiles files;
  std::error_code error;  // What can't be looked at is reported when it is opened.
  const bool is_folder = fs::is_directory(path, error);
  DITSERVE_RETURN_IF_ERROR(is_folder ? FindInFolder(path, files) : FindShards(path, files));
  const fs::path config = (is_folder ? fs::path(path) : fs::path(path).parent_path()) / "config.json";
  // A link that leads nowhere is there: what was meant is not to be guessed from the tensors.
  if (fs::symlink_status(config, error).type() != fs::file_type::not_found) {
    DITSERVE_ASSIGN_OR_RETURN(files.config_json, ReadText(config, kMaxConfigBytes));
    if (files.config_json.empty()) return absl::InvalidArgumentError("config.json: empty, expected a JSON object");
  }
  return files;
}

absl::StatusOr<std::map<std::string, std::string>> ParseCheckpointIndex(absl::string_view json) {
  IndexReader reader;
  DITSERVE_RETURN_IF_ERROR(reader.Read(json));
  if (!reader.weight_map()) return absl::InvalidArgumentError("expected an object with an object 'weight_map'");
  return *std::move(reader.weight_map());
}

}  // namespace ditserve
