#ifndef DITSERVE_CLIENT_DITCTL_ERROR_TEXT_H_
#define DITSERVE_CLIENT_DITCTL_ERROR_TEXT_H_

#include <grpcpp/support/status.h>

#include <string>

namespace ditserve::ditctl {

// The name of a gRPC code: "RESOURCE_EXHAUSTED".
std::string CodeName(grpc::StatusCode code);

// What a user reads of a failed call: code, message, and what to do about it, by the code and google.rpc's details.
std::string ErrorText(const grpc::Status& status, const std::string& address);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_ERROR_TEXT_H_
