#include "core/base/flags.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace ditserve {
namespace {

// Where texts of --help begin: two spaces behind the longest flag, by which the manual pages tell them apart.
constexpr size_t kHelpColumn = 32;

// What is wrong with an argument that no flag takes.
absl::Status Unexpected(const CLI::App& app, const std::string& argument) {
  if (!absl::StartsWith(argument, "-")) {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument '", argument, "'"));
  }
  std::vector<std::string> valid;
  for (const CLI::Option* flag : app.get_options()) {
    if (!flag->get_positional()) valid.push_back("--" + flag->get_lnames().front());
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown flag ", argument.substr(0, argument.find('=')), "; valid: ", absl::StrJoin(valid, ", ")));
}

}  // namespace

std::string ReadIntegerFlag(std::string& text) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value)) return absl::StrCat("expected an integer, found '", text, "'");
  text = absl::StrCat(value);
  return "";
}

std::string ReadNumberFlag(std::string& text) {
  double value = 0;
  if (absl::SimpleAtod(text, &value) && std::isfinite(value)) return "";
  return absl::StrCat("expected a number, found '", text, "'");
}

absl::Status ParseFlags(CLI::App& app, const std::vector<std::string>& arguments, std::string* help) {
  std::vector<std::string> words;
  for (const std::string& argument : arguments) {
    const size_t equals = argument.find('=');
    const CLI::Option* const flag = app.get_option_no_throw(argument.substr(0, equals));
    if (flag == nullptr || equals == std::string::npos) {
      words.push_back(argument);
    } else if (flag->get_items_expected_max() == 0) {  // CLI11 lets "--switch=false" turn it off.
      return absl::InvalidArgumentError(absl::StrCat(argument.substr(0, equals), ": takes no value"));
    } else {  // CLI11 takes "--flag=" for a flag whose value is the next argument.
      words.insert(words.end(), {argument.substr(0, equals), argument.substr(equals + 1)});
    }
  }
  std::reverse(words.begin(), words.end());  // As it wants them.
  app.allow_extras();
  try {
    app.parse(words);
  } catch (const CLI::CallForHelp&) {
    app.get_formatter()->column_width(kHelpColumn);
    *help = app.help();
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(error.what());
  }
  const std::vector<std::string> extras = help->empty() ? app.remaining() : std::vector<std::string>();
  return extras.empty() ? absl::OkStatus() : Unexpected(app, extras.front());
}

}  // namespace ditserve
