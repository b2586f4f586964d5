#include "server/config/token_file.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <optional>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "core/base/size.h"
#include "core/base/status_macros.h"
#include "server/config/config_file.h"
#include "server/config/forms.h"
#include "server/config/yaml_map.h"

namespace ditserve {
namespace {

// A token that can be guessed is none.
constexpr size_t kLeastTokenBytes = 16;
constexpr size_t kMostTokenBytes = 4096;
constexpr absl::Duration kNextTry = absl::Seconds(1);

constexpr std::array<std::pair<absl::string_view, Scope>, 3> kScopes = {
    {{"infer", Scope::kInfer}, {"read", Scope::kRead}, {"admin", Scope::kAdmin}}};

absl::string_view Name(Scope scope) {
  return std::find_if(kScopes.begin(), kScopes.end(), [&](const auto& named) { return named.second == scope; })->first;
}

std::optional<Scope> ScopeFromName(absl::string_view name) {
  const auto* found =
      std::find_if(kScopes.begin(), kScopes.end(), [&](const auto& named) { return named.first == name; });
  return found == kScopes.end() ? std::nullopt : std::optional(found->second);
}

// What a header can carry.
bool IsToken(absl::string_view token) {
  return token.size() >= kLeastTokenBytes && token.size() <= kMostTokenBytes &&
         std::all_of(token.begin(), token.end(), [](char c) { return c > ' ' && c < '\x7f'; });
}

// Looks at every byte whatever it finds. `secret` is not empty.
bool Equal(absl::string_view secret, absl::string_view given) {
  volatile size_t differences = secret.size() ^ given.size();
  for (size_t i = 0; i < given.size(); ++i) {
    differences = differences | static_cast<unsigned char>(secret[i % secret.size()] ^ given[i]);
  }
  return differences == 0;
}

absl::Status ReadMessageBytes(YamlMap& map, Caller& caller) {
  std::optional<std::string> text;
  DITSERVE_RETURN_IF_ERROR(map.ReadString("max_message_bytes", &text));
  if (!text) return absl::OkStatus();
  const std::optional<int64_t> bytes = ParseSize(*text);
  if (!bytes || *bytes < 1) return map.Wrong("max_message_bytes", "expected 1 to 2^50 bytes, with KiB, MiB or GiB");
  caller.max_message_bytes = *bytes;
  return absl::OkStatus();
}

absl::Status ReadToken(YamlMap& map, std::vector<AccessToken>& tokens) {
  AccessToken token;
  std::vector<std::string> scopes;
  DITSERVE_RETURN_IF_ERROR(map.ReadString("name", &token.caller.name));
  DITSERVE_RETURN_IF_ERROR(map.ReadString("token", &token.token));
  DITSERVE_RETURN_IF_ERROR(map.ReadStrings("scopes", &scopes));
  DITSERVE_RETURN_IF_ERROR(map.ReadInteger("max_calls", 1, 1 << 20, &token.caller.max_calls));
  DITSERVE_RETURN_IF_ERROR(ReadMessageBytes(map, token.caller));
  if (!IsName(token.caller.name)) return map.Wrong("name", kNameForm);
  if (!IsToken(token.token)) {
    return map.Wrong("token", "expected 16 to 4096 printable characters of ASCII without spaces");
  }
  for (const std::string& scope : scopes) {
    const std::optional<Scope> known = ScopeFromName(scope);
    if (!known) return map.Wrong("scopes", "expected a list of infer, read and admin");
    token.scopes.push_back(*known);
  }
  for (const AccessToken& other : tokens) {
    if (other.caller.name == token.caller.name) return map.Wrong("name", "another token has this name");
    if (other.token == token.token) return map.Wrong("token", absl::StrCat("is that of ", other.caller.name, " too"));
  }
  tokens.push_back(std::move(token));
  return map.RefuseOthers();
}

absl::StatusOr<std::vector<AccessToken>> Read(const std::string& path) {
  DITSERVE_ASSIGN_OR_RETURN(const std::string text, ReadConfigFile(path));
  return ParseTokens(text, path);
}

}  // namespace

absl::StatusOr<std::vector<AccessToken>> ParseTokens(const std::string& yaml, const std::string& file) {
  DITSERVE_ASSIGN_OR_RETURN(YamlMap document, YamlMap::Parse(yaml, file));
  std::vector<AccessToken> tokens;
  DITSERVE_RETURN_IF_ERROR(document.ReadList("tokens", [&](YamlMap& map) { return ReadToken(map, tokens); }));
  DITSERVE_RETURN_IF_ERROR(document.RefuseOthers());
  if (tokens.empty()) return document.Wrong("", "expected at least one token in 'tokens'");
  return tokens;
}

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(const std::string& path, const Clock* clock) {
  Contents contents;
  contents.stamp = FileStamp::Of(path);
  DITSERVE_ASSIGN_OR_RETURN(contents.tokens, Read(path));
  return absl::WrapUnique(new TokenFile(path, clock, std::move(contents)));
}

std::shared_ptr<const TokenFile::Contents> TokenFile::Current() const {
  std::shared_ptr<const Contents> known;
  {
    const absl::MutexLock lock(&mutex_);
    known = contents_;
  }
  Contents found;
  found.stamp = FileStamp::Of(path_);  // Before it is read: what changes meanwhile is then read again.
  if (found.stamp == known->stamp) return known;
  if (found.stamp == known->unreadable && clock_.Now() < known->next_try) return known;
  absl::StatusOr<std::vector<AccessToken>> tokens = Read(path_);
  if (tokens.ok()) {
    spdlog::info("tokens: {} of {}", tokens->size(), path_);
    found.tokens = *std::move(tokens);
  } else {
    found.error = std::string(tokens.status().message());
    found.tokens = known->tokens;
    if (absl::IsInvalidArgument(tokens.status()) || found.error != known->error) {
      spdlog::error("tokens stay as they were: {}", found.error);
    }
    // No descriptor was left, or the disk failed: the file is as good as it was, and nobody has looked into it yet.
    if (!absl::IsInvalidArgument(tokens.status())) {
      found.unreadable = std::exchange(found.stamp, known->stamp);
      found.next_try = clock_.Now() + kNextTry;
    }
  }
  const absl::MutexLock lock(&mutex_);
  contents_ = std::make_shared<Contents>(std::move(found));
  return contents_;
}

absl::StatusOr<Caller> TokenFile::Check(absl::string_view token, Scope scope) const {
  if (token.empty()) return absl::UnauthenticatedError("no bearer token came in the metadata 'authorization'");
  const std::shared_ptr<const Contents> contents = Current();
  const AccessToken* found = nullptr;
  for (const AccessToken& known : contents->tokens) {
    if (Equal(known.token, token)) found = &known;
  }
  if (found == nullptr) return absl::UnauthenticatedError("the bearer token is not one of this server's");
  if (std::find(found->scopes.begin(), found->scopes.end(), scope) != found->scopes.end()) return found->caller;
  return absl::PermissionDeniedError(
      absl::StrCat("the token of ", found->caller.name, " lacks the scope ", Name(scope)));
}

}  // namespace ditserve
