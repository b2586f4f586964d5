#ifndef DITSERVE_SERVER_RPC_METADATA_H_
#define DITSERVE_SERVER_RPC_METADATA_H_

#include <grpcpp/server_context.h>

#include <string>

namespace ditserve {

// What came with a call by that name; empty where nothing did.
inline std::string MetadataOf(const grpc::CallbackServerContext& context, const char* name) {
  const auto found = context.client_metadata().find(name);
  if (found == context.client_metadata().end()) return "";
  return std::string(found->second.data(), found->second.size());
}

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_METADATA_H_
