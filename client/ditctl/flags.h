#ifndef DITSERVE_CLIENT_DITCTL_FLAGS_H_
#define DITSERVE_CLIENT_DITCTL_FLAGS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"

namespace ditserve::ditctl {

// The flags of one command: declared with targets, then parsed.
//
//   Flags flags("forward", "Sends one forward pass.");
//   flags.Add("height", "PIXELS", "image height", &height);
//   DITSERVE_RETURN_IF_ERROR(flags.Parse(arguments));
class Flags {
 public:
  // Where a value goes. An optional one tells whether the flag was given. A bool is a switch: it takes no value.
  using Target = std::variant<bool*, std::string*, std::optional<std::string>*, int64_t*, std::optional<int64_t>*,
                              double*, std::optional<double>*>;

  Flags(std::string command, std::string description)
      : command_(std::move(command)), description_(std::move(description)) {}

  // `value` stands for the value in the usage.
  void Add(const std::string& name, const std::string& value, const std::string& help, Target target);
  void AddSwitch(const std::string& name, const std::string& help, bool* target);
  // What stands without a flag, at most once.
  void AddPositional(const std::string& name, std::string* target);

  // Takes --name value and --name=value. Errors: InvalidArgument that names the flag.
  absl::Status Parse(const std::vector<std::string>& arguments);

  // Whether --help was among the arguments; the rest is then not checked.
  bool help() const { return help_; }
  // What --help prints: the flags in the order in which they were added.
  std::string Usage() const;

 private:
  struct Flag {
    std::string name, value, help;
    Target target;
  };

  absl::Status TakePositional(const std::string& argument);
  const Flag* Find(const std::string& name) const;

  std::string command_, description_;
  std::vector<Flag> flags_;
  std::string positional_name_;
  std::string* positional_ = nullptr;
  bool positional_taken_ = false;
  bool help_ = false;
};

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_FLAGS_H_
