#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "client/ditctl/commands.h"

namespace {

std::atomic<bool> interrupted = false;  // A signal handler can set nothing else.

void OnInterrupt(int) {
  if (interrupted.exchange(true)) _exit(ditserve::ditctl::kInterrupted);  // The second time at once.
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, OnInterrupt);
  std::signal(SIGTERM, OnInterrupt);
  std::signal(SIGPIPE, SIG_IGN);
  const char* const address = std::getenv("DITSERVE_ADDRESS");
  const char* const admin_address = std::getenv("DITSERVE_ADMIN_ADDRESS");
  const int code = ditserve::ditctl::Run(
      std::vector<std::string>(argv + 1, argv + argc),
      {address != nullptr ? address : "127.0.0.1:50051", admin_address != nullptr ? admin_address : "127.0.0.1:50052",
       std::cout, std::cerr, isatty(STDOUT_FILENO) != 0, isatty(STDERR_FILENO) != 0, interrupted,
       isatty(STDIN_FILENO) != 0 ? STDIN_FILENO : -1});
  if (std::cout.flush()) return code;
  std::cerr << "ditctl: can't write to standard output\n";
  return ditserve::ditctl::kFailed;
}
