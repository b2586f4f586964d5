#ifndef DITSERVE_CORE_BASE_FLAGS_H_
#define DITSERVE_CORE_BASE_FLAGS_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"

// Command lines, read by CLI11: what ours differ in from its own ways.
namespace ditserve {

// What is wrong with a number, if anything. `text` becomes what CLI11 reads as Abseil does: its own numbers would be
// 8 for "010", 2^63 - 1 for 2^63 and 0 for "".
std::string ReadIntegerFlag(std::string& text);
std::string ReadNumberFlag(std::string& text);  // Finite.

// Adds --name; `value` stands for its value in the help. An optional target tells whether the flag was given; of a flag
// that is given twice the last counts, or all where `target` is a vector.
template <typename T>
CLI::Option* AddFlag(CLI::App& app, const std::string& name, const std::string& value, const std::string& help,
                     T* target) {
  CLI::Option* const flag = app.add_option("--" + name, *target, help)->type_name(value)->expected(1);
  if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, std::optional<int64_t>>)
    flag->transform(CLI::Validator(ReadIntegerFlag, ""));
  if constexpr (std::is_same_v<T, double> || std::is_same_v<T, std::optional<double>>)
    flag->check(CLI::Validator(ReadNumberFlag, ""));
  return std::is_same_v<T, std::vector<std::string>> ? flag->take_all() : flag->take_last();
}

// Parses `arguments`, which come without the program's name. `help` is what --help prints, where it was among them.
// Errors: InvalidArgument, a line that names the flag.
absl::Status ParseFlags(CLI::App& app, const std::vector<std::string>& arguments, std::string* help);

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_FLAGS_H_
