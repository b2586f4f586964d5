#ifndef DITSERVE_SERVER_GATE_TLS_CERTIFICATES_H_
#define DITSERVE_SERVER_GATE_TLS_CERTIFICATES_H_

#include <array>
#include <asio/ssl/context.hpp>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/gate/file_stamp.h"

namespace ditserve {

// PEM files.
struct TlsFiles {
  std::string certificate;  // The chain, the server's own first. Empty: no TLS.
  std::string private_key;
  std::string client_ca;  // Not empty: clients must show a certificate that one of these signed.

  friend bool operator==(const TlsFiles&, const TlsFiles&) = default;
};

// What a server shows of itself under TLS, and whom it asks for. Read again when a file changes: what can't be used
// then leaves what was there, is told in the log, and is tried again at each look, for it may have been no fault of the
// files'.
//
// Thread safety: thread-compatible.
class TlsCertificates {
 public:
  // Errors: NotFound, InvalidArgument, naming the file.
  static absl::StatusOr<std::unique_ptr<TlsCertificates>> Open(const TlsFiles& files);

  // Looks whether a file has changed.
  void Refresh();

  // For connections to come; those that are there keep theirs.
  const std::shared_ptr<asio::ssl::context>& context() const { return loaded_.context; }
  // When the server's own certificate ends to be valid.
  absl::Time not_after() const { return loaded_.not_after; }

 private:
  struct Loaded {
    std::shared_ptr<asio::ssl::context> context;
    absl::Time not_after;
  };
  using Stamps = std::array<FileStamp, 3>;

  TlsCertificates(TlsFiles files, Stamps stamps, Loaded loaded)
      : files_(std::move(files)), stamps_(std::move(stamps)), loaded_(std::move(loaded)) {}

  static absl::StatusOr<Loaded> Load(const TlsFiles& files);
  static Stamps Look(const TlsFiles& files);

  const TlsFiles files_;
  Stamps stamps_;  // Of what was loaded.
  Loaded loaded_;
  // Of what could not be, and was told of last.
  Stamps failed_;
  std::string error_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_TLS_CERTIFICATES_H_
