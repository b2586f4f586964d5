#ifndef DITSERVE_SERVER_CONFIG_DEFAULT_CONFIG_H_
#define DITSERVE_SERVER_CONFIG_DEFAULT_CONFIG_H_

namespace ditserve {

// The text of config/ditserve.yaml.
extern const char kDefaultConfig[];

}  // namespace ditserve

#endif  // DITSERVE_SERVER_CONFIG_DEFAULT_CONFIG_H_
