#ifndef DITSERVE_CLIENT_DITCTL_JSON_H_
#define DITSERVE_CLIENT_DITCTL_JSON_H_

#include <google/protobuf/message.h>

#include <string>

#include "client/ditctl/print.h"
#include "ditserve/v1/denoise_service.pb.h"
#include "ditserve/v1/residency_service.pb.h"
#include "ditserve/v1/transformer_service.pb.h"

namespace ditserve::ditctl {

// A message as indented JSON, with the names of the proto files.
std::string ToJson(const google::protobuf::Message& message);

// The same in one line, without fields that are not set: equal texts for equal messages.
std::string ToJsonLine(const google::protobuf::Message& message);

// What `ditctl forward --json` prints: the output's shape, dtype and statistics (not its data), the request's
// accounting, and, where it is not nullptr, where every byte is.
std::string ForwardJson(const v1::ForwardResponse& response, const Statistics& statistics,
                        const v1::Residency* residency);

// What `ditctl denoise --json` prints, likewise, and the steps that were reused.
std::string DenoiseJson(const v1::DenoiseResult& result, const Statistics& statistics);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_JSON_H_
