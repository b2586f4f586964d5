#ifndef DITSERVE_SERVER_CONFIG_TOKEN_FILE_H_
#define DITSERVE_SERVER_CONFIG_TOKEN_FILE_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "server/gate/access.h"
#include "server/gate/file_stamp.h"

namespace ditserve {

// A bearer token and what it allows.
struct AccessToken {
  Caller caller;  // Its name is what logs and errors call it.
  std::string token;
  std::vector<Scope> scopes;
};

// The tokens of a file's text; `file` names it. Errors: InvalidArgument with line, column and key. They never repeat a
// token.
absl::StatusOr<std::vector<AccessToken>> ParseTokens(const std::string& yaml, const std::string& file);

// The bearer tokens in a file, which is read again when it changes: one that is invalid then leaves those that were
// there, and is told in the log. One that can't be read is tried again after a second: what is in it may take tokens
// away.
//
// Thread safety: thread-safe. Ownership: the clock must outlive it.
class TokenFile final : public AccessControl {
 public:
  // Errors: as ParseTokens; NotFound.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(const std::string& path, const Clock* clock);

  // Takes as long for a token that is nearly right as for one that is not.
  absl::StatusOr<Caller> Check(absl::string_view token, Scope scope) const override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // What was read, and what the file was when it was.
  struct Contents {
    std::vector<AccessToken> tokens;
    FileStamp stamp;
    std::string error;  // Why the last attempt to read it anew left it as it was; empty where there was none.
    // What could not be read then is not tried before this: a disk that fails takes its time to say so.
    FileStamp unreadable;
    absl::Duration next_try = -absl::InfiniteDuration();
  };

  TokenFile(std::string path, const Clock* clock, Contents contents)
      : path_(std::move(path)), clock_(*clock), contents_(std::make_shared<Contents>(std::move(contents))) {}

  // Reads the file without the mutex: a slow disk holds up whoever finds it changed, and nobody else.
  std::shared_ptr<const Contents> Current() const ABSL_LOCKS_EXCLUDED(mutex_);

  const std::string path_;
  const Clock& clock_;
  mutable absl::Mutex mutex_;
  mutable std::shared_ptr<const Contents> contents_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_CONFIG_TOKEN_FILE_H_
