#include "server/gate/tls_certificates.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <spdlog/spdlog.h>

#include <ctime>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

constexpr unsigned char kHttp2[] = {2, 'h', '2'};

// Who speaks no HTTP/2 speaks no gRPC.
int ChooseHttp2(SSL*, const unsigned char** chosen, unsigned char* chosen_bytes, const unsigned char* offered,
                unsigned int offered_bytes, void*) {
  unsigned char* found = nullptr;
  if (SSL_select_next_proto(&found, chosen_bytes, kHttp2, sizeof(kHttp2), offered, offered_bytes) !=
      OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *chosen = found;
  return SSL_TLSEXT_ERR_OK;
}

absl::Status Wrong(const std::string& file, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", why));
}

absl::Status Readable(const std::string& file) {
  if (!(FileStamp::Of(file) == FileStamp())) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(file, ": no such file"));
}

absl::StatusOr<absl::Time> NotAfter(const asio::ssl::context& context, const std::string& file) {
  const X509* const certificate = SSL_CTX_get0_certificate(const_cast<asio::ssl::context&>(context).native_handle());
  std::tm until = {};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &until) != 1) {
    return Wrong(file, "no certificate with a time that it ends at");
  }
  return absl::FromTM(until, absl::UTCTimeZone());
}

}  // namespace

absl::StatusOr<TlsCertificates::Loaded> TlsCertificates::Load(const TlsFiles& files) {
  for (const std::string* file : {&files.certificate, &files.private_key, &files.client_ca}) {
    if (!file->empty()) DITSERVE_RETURN_IF_ERROR(Readable(*file));
  }
  auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
  SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
  SSL_CTX_set_options(context->native_handle(), SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_alpn_select_cb(context->native_handle(), ChooseHttp2, nullptr);
  // Each connection shows its certificates: none is let in for what another one showed, perhaps to an authority that is
  // believed no more. (And OpenSSL refuses to resume where clients show one, as we name no context for sessions.)
  SSL_CTX_set_session_cache_mode(context->native_handle(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context->native_handle(), SSL_OP_NO_TICKET);
  SSL_CTX_set_num_tickets(context->native_handle(), 0);
  // A connection that rests keeps no 34 KiB of buffers.
  SSL_CTX_set_mode(context->native_handle(), SSL_MODE_RELEASE_BUFFERS);
  asio::error_code error;
  if (context->use_certificate_chain_file(files.certificate, error); error) {
    return Wrong(files.certificate, error.message());
  }
  if (context->use_private_key_file(files.private_key, asio::ssl::context::pem, error); error) {
    return Wrong(files.private_key, error.message());
  }
  if (SSL_CTX_check_private_key(context->native_handle()) != 1) {
    ERR_clear_error();
    return Wrong(files.private_key, absl::StrCat("is not the key of ", files.certificate));
  }
  if (!files.client_ca.empty()) {
    if (context->load_verify_file(files.client_ca, error); error) return Wrong(files.client_ca, error.message());
    context->set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
  }
  DITSERVE_ASSIGN_OR_RETURN(const absl::Time not_after, NotAfter(*context, files.certificate));
  if (not_after < absl::Now()) {
    spdlog::warn("{} is no longer valid: its time ended {}", files.certificate, absl::FormatTime(not_after));
  }
  return Loaded{std::move(context), not_after};
}

TlsCertificates::Stamps TlsCertificates::Look(const TlsFiles& files) {
  return {FileStamp::Of(files.certificate), FileStamp::Of(files.private_key), FileStamp::Of(files.client_ca)};
}

absl::StatusOr<std::unique_ptr<TlsCertificates>> TlsCertificates::Open(const TlsFiles& files) {
  const Stamps stamps = Look(files);
  DITSERVE_ASSIGN_OR_RETURN(Loaded loaded, Load(files));
  return absl::WrapUnique(new TlsCertificates(files, stamps, std::move(loaded)));
}

void TlsCertificates::Refresh() {
  const Stamps stamps = Look(files_);
  if (stamps == stamps_) return;
  absl::StatusOr<Loaded> loaded = Load(files_);
  if (loaded.ok()) {
    loaded_ = *std::move(loaded);
    stamps_ = stamps;
    spdlog::info("TLS certificate of {}, valid until {}", files_.certificate, absl::FormatTime(loaded_.not_after));
    return;
  }
  const std::string error(loaded.status().message());
  if (stamps == failed_ && error == error_) return;
  spdlog::error("TLS certificates stay as they were: {}", error);
  failed_ = stamps;
  error_ = error;
}

}  // namespace ditserve
