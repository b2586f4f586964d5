#ifndef DITSERVE_SERVER_RPC_SERVED_METHODS_H_
#define DITSERVE_SERVER_RPC_SERVED_METHODS_H_

#include <cstdint>

#include "server/gate/doorman.h"

namespace ditserve {

// What is let in where clients come, with the scope that each method needs and its largest message; those that carry
// tensors take `max_message_bytes`.
Methods ClientMethods(int64_t max_message_bytes);
// Where those come who change the server.
Methods AdminMethods();
// Where nobody is asked for anything.
Methods HealthMethods();

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_SERVED_METHODS_H_
