#ifndef DITSERVE_CORE_BASE_TEXT_H_
#define DITSERVE_CORE_BASE_TEXT_H_

#include <cstdint>
#include <string>
#include <vector>

namespace ditserve {

// "512 B", "1.5 MiB".
std::string Bytes(int64_t bytes);

// Rows of cells in columns as wide as their widest cell.
std::string Table(const std::vector<std::vector<std::string>>& rows);

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_TEXT_H_
