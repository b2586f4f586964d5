#ifndef DITSERVE_CLIENT_DITCTL_FLAGS_H_
#define DITSERVE_CLIENT_DITCTL_FLAGS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ditserve::ditctl {

// The flags of one command: declared with targets, then parsed.
//
//   Flags flags("forward", "Sends one forward pass.");
//   flags.Add("height", "PIXELS", "image height", &height);
//   DITSERVE_RETURN_IF_ERROR(flags.Parse(arguments));
class Flags {
 public:
  Flags(std::string command, std::string description)
      : command_(std::move(command)), description_(std::move(description)) {}

  void Add(const std::string& name, const std::string& value, const std::string& help, std::string* target);
  void Add(const std::string& name, const std::string& value, const std::string& help,
           std::optional<std::string>* target);
  void Add(const std::string& name, const std::string& value, const std::string& help, int64_t* target);
  void Add(const std::string& name, const std::string& value, const std::string& help, double* target);
  void Add(const std::string& name, const std::string& value, const std::string& help, std::optional<double>* target);
  void AddSwitch(const std::string& name, const std::string& help, bool* target);
  // What stands without a flag, at most once.
  void AddPositional(const std::string& name, std::string* target);

  // Takes --name value and --name=value. Errors: InvalidArgument that names the flag.
  absl::Status Parse(const std::vector<std::string>& arguments);

  // Whether --help was among the arguments; the rest is then not checked.
  bool help() const { return help_; }
  std::string Usage() const;

 private:
  struct Flag {
    std::string value;  // What stands for the value in the usage; empty for a switch.
    std::string help;
    std::string* text = nullptr;
    std::optional<std::string>* optional_text = nullptr;
    int64_t* integer = nullptr;
    double* number = nullptr;
    std::optional<double>* optional_number = nullptr;
    bool* on = nullptr;
  };

  absl::Status Set(const std::string& name, const Flag& flag, const std::string& value) const;

  std::string command_, description_;
  std::map<std::string, Flag> flags_;
  std::string positional_name_;
  std::string* positional_ = nullptr;
  bool help_ = false;
};

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_FLAGS_H_
