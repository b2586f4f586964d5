#ifndef DITSERVE_CLIENT_DITCTL_COMMANDS_H_
#define DITSERVE_CLIENT_DITCTL_COMMANDS_H_

#include <atomic>
#include <ostream>
#include <string>
#include <vector>

namespace ditserve::ditctl {

// What main hands to every command.
struct Environment {
  std::string default_address;
  std::string default_admin_address;
  std::ostream& out;
  std::ostream& err;
  bool out_is_terminal;                  // What is live is then drawn over itself.
  bool err_is_terminal;                  // Progress is then a bar, else a few lines.
  const std::atomic<bool>& interrupted;  // Set by Ctrl-C.
  int keys = -1;                         // The descriptor that keys come from; -1: nobody presses any.
};

// Exit codes.
constexpr int kOk = 0;
constexpr int kFailed = 1;
constexpr int kUsage = 2;
constexpr int kInterrupted = 130;

// Runs `ditctl arguments...` and returns its exit code.
int Run(const std::vector<std::string>& arguments, const Environment& environment);

// The commands; `arguments` without the command's name.
int Forward(const std::vector<std::string>& arguments, const Environment& environment);
int Denoise(const std::vector<std::string>& arguments, const Environment& environment);
int Plan(const std::vector<std::string>& arguments, const Environment& environment);
int Model(const std::vector<std::string>& arguments, const Environment& environment);
int Models(const std::vector<std::string>& arguments, const Environment& environment);
int Profiles(const std::vector<std::string>& arguments, const Environment& environment);
int Residency(const std::vector<std::string>& arguments, const Environment& environment);
int Top(const std::vector<std::string>& arguments, const Environment& environment);
int Budget(const std::vector<std::string>& arguments, const Environment& environment);
int Health(const std::vector<std::string>& arguments, const Environment& environment);
int MakeCheckpoint(const std::vector<std::string>& arguments, const Environment& environment);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_COMMANDS_H_
