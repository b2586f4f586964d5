#include "models/module_tree.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace ditserve {
namespace {

using Children = std::vector<std::pair<std::string, ModuleNode>>;

ModuleNode Leaf(std::string type, std::string extra = "") { return {std::move(type), std::move(extra), {}, {}}; }

ModuleNode Node(std::string type, Children children) { return {std::move(type), "", {}, std::move(children)}; }

ModuleNode Linear(int64_t in, int64_t out) {
  return {"Linear",
          absl::StrCat("in_features=", in, ", out_features=", out, ", bias=True"),
          {{"weight", {out, in}}, {"bias", {out}}},
          {}};
}

ModuleNode RmsNorm(int64_t width) { return {"RMSNorm", "", {{"weight", {width}}}, {}}; }

// As DiffSynth-Studio's documentation shows it; PyTorch 2.13 adds ", bias=False".
ModuleNode LayerNorm(int64_t width) {
  return Leaf("LayerNorm", absl::StrCat("(", width, ",), eps=1e-06, elementwise_affine=False"));
}

ModuleNode Modulation(int64_t width) {
  return Node("Sequential", {{"0", Leaf("SiLU")}, {"1", Linear(width, 6 * width)}});
}

ModuleNode FeedForward(int64_t width) {
  ModuleNode gelu = Node("ApproximateGELU", {{"proj", Linear(width, 4 * width)}});
  return Node("QwenFeedForward", {{"net", Node("ModuleList", {{"0", std::move(gelu)},
                                                              {"1", Leaf("Dropout", "p=0.0, inplace=False")},
                                                              {"2", Linear(4 * width, width)}})}});
}

ModuleNode Attention(const QwenImageDiTConfig& config) {
  const int64_t width = config.width(), head = config.attention_head_dim;
  return Node("QwenDoubleStreamAttention", {{"to_q", Linear(width, width)},
                                            {"to_k", Linear(width, width)},
                                            {"to_v", Linear(width, width)},
                                            {"norm_q", RmsNorm(head)},
                                            {"norm_k", RmsNorm(head)},
                                            {"add_q_proj", Linear(width, width)},
                                            {"add_k_proj", Linear(width, width)},
                                            {"add_v_proj", Linear(width, width)},
                                            {"norm_added_q", RmsNorm(head)},
                                            {"norm_added_k", RmsNorm(head)},
                                            {"to_out", Node("Sequential", {{"0", Linear(width, width)}})},
                                            {"to_add_out", Linear(width, width)}});
}

ModuleNode Block(const QwenImageDiTConfig& config) {
  const int64_t width = config.width();
  return Node("QwenImageTransformerBlock", {{"img_mod", Modulation(width)},
                                            {"img_norm1", LayerNorm(width)},
                                            {"attn", Attention(config)},
                                            {"img_norm2", LayerNorm(width)},
                                            {"img_mlp", FeedForward(width)},
                                            {"txt_mod", Modulation(width)},
                                            {"txt_norm1", LayerNorm(width)},
                                            {"txt_norm2", LayerNorm(width)},
                                            {"txt_mlp", FeedForward(width)}});
}

std::string Indented(const std::string& text) { return absl::StrJoin(absl::StrSplit(text, '\n'), "\n  "); }

// The lines of a ModuleList's children: equal neighbours become one, "(0-59): 60 x ...".
std::vector<std::string> FoldedLines(const Children& children) {
  std::vector<std::string> lines;
  for (size_t begin = 0, end; begin < children.size(); begin = end) {
    const std::string text = Print(children[begin].second);
    for (end = begin + 1; end < children.size() && Print(children[end].second) == text;) ++end;
    const std::string label = end - begin == 1 ? absl::StrCat("(", begin, "): ")
                                               : absl::StrCat("(", begin, "-", end - 1, "): ", end - begin, " x ");
    lines.push_back(label + Indented(text));
  }
  return lines;
}

void Collect(const ModuleNode& node, const std::string& path, std::vector<ModuleSpec>& modules) {
  if (!node.parameters.empty()) modules.push_back({path, node.type, node.parameters});
  for (const auto& [name, child] : node.children) Collect(child, path.empty() ? name : path + "." + name, modules);
}

}  // namespace

ModuleNode QwenImageDiTTree(const QwenImageDiTConfig& config) {
  const int64_t width = config.width();
  constexpr int64_t kTimeChannels = 256;
  ModuleNode embedder =
      Node("DiffusersCompatibleTimestepProj",
           {{"linear_1", Linear(kTimeChannels, width)}, {"act", Leaf("SiLU")}, {"linear_2", Linear(width, width)}});
  Children blocks;
  for (int64_t i = 0; i < config.num_layers; ++i) blocks.emplace_back(absl::StrCat(i), Block(config));
  return Node("QwenImageDiT",
              {{"pos_embed", Leaf("QwenEmbedRope")},
               {"time_text_embed", Node("TimestepEmbeddings", {{"time_proj", Leaf("TemporalTimesteps")},
                                                               {"timestep_embedder", std::move(embedder)}})},
               {"txt_norm", RmsNorm(config.joint_attention_dim)},
               {"img_in", Linear(config.in_channels, width)},
               {"txt_in", Linear(config.joint_attention_dim, width)},
               {"transformer_blocks", Node("ModuleList", std::move(blocks))},
               {"norm_out", Node("AdaLayerNorm", {{"linear", Linear(width, 2 * width)}, {"norm", LayerNorm(width)}})},
               {"proj_out", Linear(width, config.in_channels)}});
}

std::string Print(const ModuleNode& root) {
  if (root.children.empty()) return absl::StrCat(root.type, "(", root.extra, ")");
  std::vector<std::string> lines;
  if (root.type == "ModuleList") {
    lines = FoldedLines(root.children);
  } else {
    for (const auto& [name, child] : root.children) {
      lines.push_back(absl::StrCat("(", name, "): ", Indented(Print(child))));
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
