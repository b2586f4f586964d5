#ifndef DITSERVE_MODELS_MODULE_TREE_H_
#define DITSERVE_MODELS_MODULE_TREE_H_

#include <string>
#include <vector>

#include "core/storage/module.h"
#include "models/config.h"

namespace ditserve {

// A module of a model, as torch.nn.Module knows it.
struct ModuleNode {
  std::string name;                       // In its parent; empty for the root.
  std::string type;                       // "Linear", "ModuleList", ...
  std::string extra;                      // What repr shows in brackets: "in_features=64, ...".
  std::vector<ParameterSpec> parameters;  // Own parameters only.
  std::vector<ModuleNode> children;       // In definition order.
};

// The tree of DiffSynth-Studio's QwenImageDiT (2.1.12, models/qwen_image_dit.py).
ModuleNode QwenImageDiTTree(const QwenImageDiTConfig& config);

// What Python's print(model) shows, equal neighbours in a ModuleList folded: "(0-59): 60 x ...". No final newline.
std::string Print(const ModuleNode& root);

// The modules that hold parameters, in definition order.
std::vector<ModuleSpec> ListModules(const ModuleNode& root);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_MODULE_TREE_H_
