#ifndef DITSERVE_SERVER_GATE_CONNECTION_EVENTS_H_
#define DITSERVE_SERVER_GATE_CONNECTION_EVENTS_H_

#include <nghttp2/nghttp2.h>

// What nghttp2 calls; the user data of both sessions is their Connection, that of a stream its Call.
namespace ditserve {

const nghttp2_session_callbacks* ClientCallbacks();
const nghttp2_session_callbacks* ServerCallbacks();

// The bytes of a call's request, for the server's session; of its response, for the client's.
nghttp2_data_provider RequestBytes();
nghttp2_data_provider ResponseBytes();

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_CONNECTION_EVENTS_H_
