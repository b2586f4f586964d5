#ifndef DITSERVE_TESTS_TESTING_CERTIFICATES_H_
#define DITSERVE_TESTS_TESTING_CERTIFICATES_H_

#include <openssl/x509.h>

#include <memory>
#include <string>

namespace ditserve {

// A certificate and its key, in PEM.
struct Certificate {
  std::string certificate, private_key;
};

// An authority that lives as long as a test.
class CertificateAuthority {
 public:
  CertificateAuthority();

  // What clients are to believe.
  std::string certificate() const;
  // Of a server at localhost and 127.0.0.1, or of a client: valid from an hour ago for so many seconds from now.
  Certificate Issue(const std::string& name, int seconds = 3600) const;

 private:
  struct Free {
    void operator()(X509* certificate) const { X509_free(certificate); }
    void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  };
  std::unique_ptr<EVP_PKEY, Free> key_;
  std::unique_ptr<X509, Free> certificate_;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_CERTIFICATES_H_
