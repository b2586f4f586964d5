#include "client/ditctl/flags.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"

namespace ditserve::ditctl {
namespace {

absl::Status Assign(const std::string& value, std::string* target) {
  *target = value;
  return absl::OkStatus();
}

absl::Status Assign(const std::string& value, int64_t* target) {
  if (absl::SimpleAtoi(value, target)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("expected an integer, found '", value, "'"));
}

absl::Status Assign(const std::string& value, double* target) {
  if (absl::SimpleAtod(value, target) && std::isfinite(*target)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("expected a number, found '", value, "'"));
}

absl::Status Assign(const std::string&, bool*) { return absl::InvalidArgumentError("takes no value"); }

template <typename T>
absl::Status Assign(const std::string& value, std::optional<T>* target) {
  return Assign(value, &target->emplace());
}

}  // namespace

void Flags::Add(const std::string& name, const std::string& value, const std::string& help, Target target) {
  flags_.push_back({name, value, help, target});
}

void Flags::AddSwitch(const std::string& name, const std::string& help, bool* target) {
  flags_.push_back({name, "", help, target});
}

void Flags::AddPositional(const std::string& name, std::string* target) {
  positional_name_ = name;
  positional_ = target;
}

absl::Status Flags::Parse(const std::vector<std::string>& arguments) {
  help_ = std::any_of(arguments.begin(), arguments.end(),
                      [](const std::string& argument) { return argument == "--help" || argument == "-h"; });
  if (help_) return absl::OkStatus();
  for (auto argument = arguments.begin(); argument != arguments.end(); ++argument) {
    if (!absl::StartsWith(*argument, "-")) {
      DITSERVE_RETURN_IF_ERROR(TakePositional(*argument));
      continue;
    }
    const size_t equals = argument->find('=');
    const std::string name = argument->substr(0, equals);
    const Flag* const flag = Find(name);
    if (flag == nullptr) {
      const auto dashed = [](std::string* out, const Flag& valid) { absl::StrAppend(out, "--", valid.name); };
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag ", name, "; valid: ", absl::StrJoin(flags_, ", ", dashed)));
    }
    bool* const* const turned_on = std::get_if<bool*>(&flag->target);
    if (turned_on != nullptr && equals == std::string::npos) {
      **turned_on = true;
      continue;
    }
    if (equals == std::string::npos && argument + 1 == arguments.end()) {
      return absl::InvalidArgumentError(absl::StrCat(name, " needs a value: ", flag->value));
    }
    const std::string value = equals == std::string::npos ? *++argument : argument->substr(equals + 1);
    const absl::Status set = std::visit([&](auto target) { return Assign(value, target); }, flag->target);
    if (!set.ok()) return absl::InvalidArgumentError(absl::StrCat(name, ": ", set.message()));
  }
  return absl::OkStatus();
}

absl::Status Flags::TakePositional(const std::string& argument) {
  if (positional_ == nullptr || positional_taken_) {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument '", argument, "'"));
  }
  *positional_ = argument;
  positional_taken_ = true;
  return absl::OkStatus();
}

const Flags::Flag* Flags::Find(const std::string& name) const {
  const auto found =
      std::find_if(flags_.begin(), flags_.end(), [&](const Flag& flag) { return "--" + flag.name == name; });
  return found == flags_.end() ? nullptr : &*found;
}

std::string Flags::Usage() const {
  std::string usage = absl::StrCat(description_, "\n\nUsage: ditctl ", command_, " [flags]",
                                   positional_ == nullptr ? "" : absl::StrCat(" [", positional_name_, "]"), "\n");
  for (const Flag& flag : flags_) {
    absl::StrAppendFormat(&usage, "  %-30s %s\n",
                          absl::StrCat("--", flag.name, flag.value.empty() ? "" : " ", flag.value), flag.help);
  }
  return usage;
}

}  // namespace ditserve::ditctl
