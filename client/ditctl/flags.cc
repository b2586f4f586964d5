#include "client/ditctl/flags.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/status_macros.h"

namespace ditserve::ditctl {

void Flags::Add(const std::string& name, const std::string& value, const std::string& help, std::string* target) {
  flags_[name] = {value, help, target};
}

void Flags::Add(const std::string& name, const std::string& value, const std::string& help,
                std::optional<std::string>* target) {
  flags_[name] = {value, help, nullptr, target};
}

void Flags::Add(const std::string& name, const std::string& value, const std::string& help, int64_t* target) {
  flags_[name] = {value, help, nullptr, nullptr, target};
}

void Flags::Add(const std::string& name, const std::string& value, const std::string& help, double* target) {
  flags_[name] = {value, help, nullptr, nullptr, nullptr, target};
}

void Flags::Add(const std::string& name, const std::string& value, const std::string& help,
                std::optional<double>* target) {
  flags_[name] = {value, help, nullptr, nullptr, nullptr, nullptr, target};
}

void Flags::AddSwitch(const std::string& name, const std::string& help, bool* target) {
  flags_[name] = {"", help, nullptr, nullptr, nullptr, nullptr, nullptr, target};
}

void Flags::AddPositional(const std::string& name, std::string* target) {
  positional_name_ = name;
  positional_ = target;
}

absl::Status Flags::Parse(const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) help_ = help_ || argument == "--help" || argument == "-h";
  if (help_) return absl::OkStatus();
  bool positional_set = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.rfind("--", 0) != 0) {
      if (positional_ == nullptr || positional_set) {
        return absl::InvalidArgumentError(absl::StrCat("unexpected argument '", argument, "'"));
      }
      *positional_ = argument;
      positional_set = true;
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    const auto flag = flags_.find(name);
    if (flag == flags_.end()) {
      std::vector<std::string> valid;
      for (const auto& [other, unused] : flags_) valid.push_back("--" + other);
      return absl::InvalidArgumentError(absl::StrCat("unknown flag --", name, "; valid: ", absl::StrJoin(valid, ", ")));
    }
    if (flag->second.on != nullptr) {
      if (equals != std::string::npos) return absl::InvalidArgumentError(absl::StrCat("--", name, " takes no value"));
      *flag->second.on = true;
      continue;
    }
    if (equals == std::string::npos && i + 1 == arguments.size()) {
      return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value: ", flag->second.value));
    }
    const std::string value = equals == std::string::npos ? arguments[++i] : argument.substr(equals + 1);
    DITSERVE_RETURN_IF_ERROR(Set(name, flag->second, value));
  }
  return absl::OkStatus();
}

absl::Status Flags::Set(const std::string& name, const Flag& flag, const std::string& value) const {
  double number = 0;
  if (flag.text != nullptr) *flag.text = value;
  if (flag.optional_text != nullptr) *flag.optional_text = value;
  if (flag.integer != nullptr && !absl::SimpleAtoi(value, flag.integer)) {
    return absl::InvalidArgumentError(absl::StrCat("--", name, ": expected an integer, found '", value, "'"));
  }
  if (flag.number != nullptr || flag.optional_number != nullptr) {
    if (!absl::SimpleAtod(value, &number)) {
      return absl::InvalidArgumentError(absl::StrCat("--", name, ": expected a number, found '", value, "'"));
    }
    if (flag.number != nullptr) *flag.number = number;
    if (flag.optional_number != nullptr) *flag.optional_number = number;
  }
  return absl::OkStatus();
}

std::string Flags::Usage() const {
  std::string usage = absl::StrCat(description_, "\n\nUsage: ditctl ", command_, " [flags]",
                                   positional_ == nullptr ? "" : absl::StrCat(" [", positional_name_, "]"), "\n");
  for (const auto& [name, flag] : flags_) {
    absl::StrAppendFormat(&usage, "  %-30s %s\n", absl::StrCat("--", name, flag.value.empty() ? "" : " ", flag.value),
                          flag.help);
  }
  return usage;
}

}  // namespace ditserve::ditctl
