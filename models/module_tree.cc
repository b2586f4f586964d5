#include "models/module_tree.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace ditserve {
namespace {

using Children = std::vector<ModuleNode>;

ModuleNode Leaf(std::string name, std::string type, std::string extra = "") {
  return {std::move(name), std::move(type), std::move(extra), {}, {}};
}

ModuleNode Node(std::string name, std::string type, Children children) {
  return {std::move(name), std::move(type), "", {}, std::move(children)};
}

ModuleNode Linear(std::string name, int64_t in, int64_t out) {
  return {std::move(name),
          "Linear",
          absl::StrCat("in_features=", in, ", out_features=", out, ", bias=True"),
          {{"weight", {out, in}}, {"bias", {out}}},
          {}};
}

ModuleNode RmsNorm(std::string name, int64_t width) {
  return {std::move(name), "RMSNorm", "", {{"weight", {width}}}, {}};
}

// As DiffSynth-Studio's documentation shows it; PyTorch 2.13 adds ", bias=False".
ModuleNode LayerNorm(std::string name, int64_t width) {
  return Leaf(std::move(name), "LayerNorm", absl::StrCat("(", width, ",), eps=1e-06, elementwise_affine=False"));
}

ModuleNode Modulation(std::string name, int64_t width) {
  return Node(std::move(name), "Sequential", {Leaf("0", "SiLU"), Linear("1", width, 6 * width)});
}

ModuleNode FeedForward(std::string name, int64_t width) {
  return Node(std::move(name), "QwenFeedForward",
              {Node("net", "ModuleList",
                    {Node("0", "ApproximateGELU", {Linear("proj", width, 4 * width)}),
                     Leaf("1", "Dropout", "p=0.0, inplace=False"), Linear("2", 4 * width, width)})});
}

ModuleNode Attention(const QwenImageDiTConfig& config) {
  const int64_t width = config.width(), head = config.attention_head_dim;
  return Node("attn", "QwenDoubleStreamAttention",
              {Linear("to_q", width, width), Linear("to_k", width, width), Linear("to_v", width, width),
               RmsNorm("norm_q", head), RmsNorm("norm_k", head), Linear("add_q_proj", width, width),
               Linear("add_k_proj", width, width), Linear("add_v_proj", width, width), RmsNorm("norm_added_q", head),
               RmsNorm("norm_added_k", head), Node("to_out", "Sequential", {Linear("0", width, width)}),
               Linear("to_add_out", width, width)});
}

ModuleNode Block(std::string name, const QwenImageDiTConfig& config) {
  const int64_t width = config.width();
  return Node(std::move(name), "QwenImageTransformerBlock",
              {Modulation("img_mod", width), LayerNorm("img_norm1", width), Attention(config),
               LayerNorm("img_norm2", width), FeedForward("img_mlp", width), Modulation("txt_mod", width),
               LayerNorm("txt_norm1", width), LayerNorm("txt_norm2", width), FeedForward("txt_mlp", width)});
}

std::string Indented(const std::string& text) { return absl::StrJoin(absl::StrSplit(text, '\n'), "\n  "); }

// The lines of a ModuleList's children: equal neighbours become one, "(0-59): 60 x ...".
std::vector<std::string> FoldedLines(const Children& children) {
  std::vector<std::string> lines;
  for (size_t begin = 0, end; begin < children.size(); begin = end) {
    const std::string text = Print(children[begin]);
    for (end = begin + 1; end < children.size() && Print(children[end]) == text;) ++end;
    const std::string label = end - begin == 1 ? absl::StrCat("(", begin, "): ")
                                               : absl::StrCat("(", begin, "-", end - 1, "): ", end - begin, " x ");
    lines.push_back(label + Indented(text));
  }
  return lines;
}

void Collect(const ModuleNode& node, const std::string& path, std::vector<ModuleSpec>& modules) {
  if (!node.parameters.empty()) modules.push_back({path, node.type, node.parameters});
  for (const ModuleNode& child : node.children) {
    Collect(child, path.empty() ? child.name : absl::StrCat(path, ".", child.name), modules);
  }
}

}  // namespace

ModuleNode QwenImageDiTTree(const QwenImageDiTConfig& config) {
  const int64_t width = config.width();
  constexpr int64_t kTimeChannels = 256;
  ModuleNode embedder =
      Node("timestep_embedder", "DiffusersCompatibleTimestepProj",
           {Linear("linear_1", kTimeChannels, width), Leaf("act", "SiLU"), Linear("linear_2", width, width)});
  Children blocks;
  for (int64_t i = 0; i < config.num_layers; ++i) blocks.push_back(Block(absl::StrCat(i), config));
  return Node(
      "", "QwenImageDiT",
      {Leaf("pos_embed", "QwenEmbedRope"),
       Node("time_text_embed", "TimestepEmbeddings", {Leaf("time_proj", "TemporalTimesteps"), embedder}),
       RmsNorm("txt_norm", config.joint_attention_dim), Linear("img_in", config.in_channels, width),
       Linear("txt_in", config.joint_attention_dim, width), Node("transformer_blocks", "ModuleList", std::move(blocks)),
       Node("norm_out", "AdaLayerNorm", {Linear("linear", width, 2 * width), LayerNorm("norm", width)}),
       Linear("proj_out", width, config.in_channels)});
}

std::string Print(const ModuleNode& root) {
  if (root.children.empty()) return absl::StrCat(root.type, "(", root.extra, ")");
  std::vector<std::string> lines;
  if (root.type == "ModuleList") {
    lines = FoldedLines(root.children);
  } else {
    for (const ModuleNode& child : root.children) {
      lines.push_back(absl::StrCat("(", child.name, "): ", Indented(Print(child))));
    }
  }
  return absl::StrCat(root.type, "(\n  ", absl::StrJoin(lines, "\n  "), "\n)");
}

std::vector<ModuleSpec> ListModules(const ModuleNode& root) {
  std::vector<ModuleSpec> modules;
  Collect(root, "", modules);
  return modules;
}

}  // namespace ditserve
