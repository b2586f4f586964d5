#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/ditctl/commands.h"

namespace ditserve::ditctl {
namespace {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const std::vector<std::string>&, const Environment&);
};

constexpr std::array<Command, 11> kCommands = {
    {{"forward", "sends one forward pass", Forward},
     {"denoise", "makes a whole denoising loop", Denoise},
     {"plan", "tells what a pass would take", Plan},
     {"model", "prints a model's module tree", Model},
     {"models", "lists the loaded models", Models},
     {"profiles", "lists the configured profiles", Profiles},
     {"residency", "shows where every byte is", Residency},
     {"top", "shows it live", Top},
     {"budget", "changes a memory's budget", Budget},
     {"health", "asks whether the server is ready", Health},
     {"make-checkpoint", "writes a checkpoint of made-up weights", MakeCheckpoint}}};

std::string Usage() {
  std::string usage =
      "Talks to a ditserve server.\n\n"
      "Usage: ditctl COMMAND [flags]     (ditctl COMMAND --help tells a command's flags)\n";
  for (const Command& command : kCommands) absl::StrAppendFormat(&usage, "  %-17s %s\n", command.name, command.summary);
  return usage +
         "\nThe server's address is --address, else the environment's DITSERVE_ADDRESS, else 127.0.0.1:50051;\n"
         "budget's is that of its AdminService: --address, else DITSERVE_ADMIN_ADDRESS, else 127.0.0.1:50052.\n"
         "Exits with 0; 1 if the call failed; 2 for a mistake in the command line; 130 if interrupted.\n";
}

}  // namespace

int Run(const std::vector<std::string>& arguments, const Environment& environment) {
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") {
    (arguments.empty() ? environment.err : environment.out) << Usage();
    return arguments.empty() ? kUsage : kOk;
  }
  if (arguments[0] == "--version") {
    environment.out << "ditctl " DITSERVE_VERSION "\n";
    return kOk;
  }
  const auto* const command = std::find_if(kCommands.begin(), kCommands.end(),
                                           [&](const Command& other) { return arguments[0] == other.name; });
  if (command == kCommands.end()) {
    const auto name = [](std::string* out, const Command& valid) { absl::StrAppend(out, valid.name); };
    environment.err << "ditctl: unknown command '" << arguments[0]
                    << "'; valid: " << absl::StrJoin(kCommands, ", ", name) << "\n";
    return kUsage;
  }
  return command->run({arguments.begin() + 1, arguments.end()}, environment);
}

}  // namespace ditserve::ditctl
