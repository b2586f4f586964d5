#ifndef DITSERVE_SERVER_ENGINE_PUBLISHED_SPEEDS_H_
#define DITSERVE_SERVER_ENGINE_PUBLISHED_SPEEDS_H_

#include <optional>
#include <string>

namespace ditserve {

// How fast a GPU computes passes, by what others have published of one of its architecture.
struct PublishedSpeed {
  double flops_per_second = 0;  // In bfloat16, over a whole pass: twice the multiply-adds of QwenImageDiT::WorkOf.
  std::string source;           // Whose GPU, what was measured, and where that stands.
};

// Of a GPU of this compute capability (times ten) with so many multiprocessors; nullopt if nobody has published any.
std::optional<PublishedSpeed> PublishedSpeedOf(int capability, int multiprocessors);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_PUBLISHED_SPEEDS_H_
