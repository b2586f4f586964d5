#include <map>

#include "client/ditctl/commands.h"

namespace ditserve::ditctl {
namespace {

using Command = int (*)(const std::vector<std::string>&, const Environment&);

const std::map<std::string, Command>& Commands() {
  static const std::map<std::string, Command> commands = {{"forward", Forward},
                                                          {"model", Model},
                                                          {"models", Models},
                                                          {"profiles", Profiles},
                                                          {"residency", Residency},
                                                          {"health", Health},
                                                          {"make-checkpoint", MakeCheckpoint}};
  return commands;
}

constexpr char kUsageText[] =
    R"(Talks to a ditserve server.

Usage: ditctl COMMAND [flags]     (ditctl COMMAND --help tells a command's flags)
  forward           sends one forward pass
  model             prints a model's module tree
  models            lists the loaded models
  profiles          lists the configured profiles
  residency         shows where every byte is
  health            asks whether the server is ready
  make-checkpoint   writes a checkpoint of made-up weights

The server's address is --address, else the environment's DITSERVE_ADDRESS, else 127.0.0.1:50051.
)";

}  // namespace

int Run(const std::vector<std::string>& arguments, const Environment& environment) {
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") {
    (arguments.empty() ? environment.err : environment.out) << kUsageText;
    return arguments.empty() ? kUsage : kOk;
  }
  if (arguments[0] == "--version") {
    environment.out << "ditctl " DITSERVE_VERSION "\n";
    return kOk;
  }
  const auto command = Commands().find(arguments[0]);
  if (command == Commands().end()) {
    environment.err << "ditctl: unknown command '" << arguments[0] << "'; see ditctl --help\n";
    return kUsage;
  }
  return command->second({arguments.begin() + 1, arguments.end()}, environment);
}

}  // namespace ditserve::ditctl
