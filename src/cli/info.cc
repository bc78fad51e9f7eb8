#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "model/weights.h"

namespace rwkvx::cli {
namespace {

struct Part {
  int64_t parameters = 0;
  uint64_t bytes = 0;
};

struct Summary {
  std::map<std::string, Part> parts;  // embedding, head, time mix, …
  std::map<std::string, int64_t> dtypes;
  Part total;
};

std::string part_of(const TensorSpec& spec) {
  if (spec.role == Role::embedding) return "embedding";
  if (spec.role == Role::head) return "head";
  if (spec.name.starts_with("moba.")) return "sparse blocks";
  if (spec.name.find(".att.") != std::string::npos) return "time mix";
  if (spec.name.find(".ffn.") != std::string::npos) return "channel mix";
  return "norms";
}

Summary summarize(const Checkpoint& checkpoint) {
  Summary summary;
  for (const TensorSpec& spec : tensor_list(checkpoint.config)) {
    const CatalogTensor* tensor = checkpoint.catalog.find(spec.name);
    if (tensor == nullptr) {
      fail("{}: tensor {} is missing", checkpoint.path().string(), checkpoint.file_name_of(spec.name));
    }
    for (Part* part : {&summary.parts[part_of(spec)], &summary.total}) {
      part->parameters += tensor->data.elements();
      part->bytes += tensor->data.bytes();
    }
    summary.dtypes[std::string(name(tensor->data.dtype()))] += tensor->data.elements();
  }
  return summary;
}

std::string order_text(const ModelConfig& config) {
  std::string text;
  for (const BlockRef& block : block_order(config)) text += block.sparse ? 'S' : 'R';
  return text;
}

void run(const RunOptions& options, bool json) {
  const auto checkpoint = open_checkpoint(options.model, options.checkpoint_options());
  const ModelConfig& c = checkpoint->config;
  const Summary summary = summarize(*checkpoint);
  const auto tokenizer = find_tokenizer(*checkpoint, options.vocabulary_path());
  const std::string tokenizer_name = tokenizer ? std::string(tokenizer->name()) : "none";
  const std::string architecture = c.sparse_blocks > 0 ? "RWKV-X" : "RWKV-7";
  const auto state_bytes =
      static_cast<uint64_t>(4 * (c.layers * c.channels * 66 + c.sparse_blocks * c.channels));
  const auto kv_bytes_per_token = static_cast<uint64_t>(c.sparse_blocks * c.channels * 2 * 2);

  if (json) {
    nlohmann::ordered_json out = {
        {"file", options.model},
        {"format", name(checkpoint->catalog.format)},
        {"naming", name(checkpoint->dialect)},
        {"architecture", architecture},
        {"parameters", summary.total.parameters},
        {"bytes", summary.total.bytes},
        {"layers", c.layers},
        {"sparse_blocks", c.sparse_blocks},
        {"block_order", order_text(c)},
        {"channels", c.channels},
        {"heads", c.heads()},
        {"head_size", kHeadSize},
        {"ffn", c.ffn},
        {"vocab", c.vocab},
        {"ranks", {{"w", c.decay_rank}, {"a", c.rate_rank}, {"v", c.value_rank}, {"g", c.gate_rank}}},
        {"chunk_size", c.chunk_size},
        {"chunk_top_k", c.top_k},
        {"chunk_settings_recorded", checkpoint->chunk_settings_recorded},
        {"tokenizer", tokenizer_name},
        {"state_bytes", state_bytes},
        {"kv_bytes_per_token", kv_bytes_per_token}};
    for (const auto& [part, numbers] : summary.parts) {
      out["parts"][part] = {{"parameters", numbers.parameters}, {"bytes", numbers.bytes}};
    }
    for (const auto& [dtype, elements] : summary.dtypes) out["dtypes"][dtype] = elements;
    return print(out.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }

  const auto millions = [](int64_t n) { return fmt::format("{:.3f} M", static_cast<double>(n) / 1e6); };
  std::string text;
  const auto line = [&](std::string_view label, const std::string& value) {
    text += fmt::format("{:<16}{}\n", label, value);
  };
  line("file", options.model);
  line("format", fmt::format("{}, names of {}", name(checkpoint->catalog.format), name(checkpoint->dialect)));
  line("architecture",
       fmt::format("{}: {} RWKV-7 blocks, {} sparse blocks", architecture, c.layers, c.sparse_blocks));
  line("block order", order_text(c) + "   (R: RWKV-7, S: sparse attention)");
  line("channels",
       fmt::format("{} ({} heads of {}), {} in the channel mix", c.channels, c.heads(), kHeadSize, c.ffn));
  line("low ranks",
       fmt::format("w {}, a {}, v {}, g {}", c.decay_rank, c.rate_rank, c.value_rank, c.gate_rank));
  if (c.sparse_blocks > 0) {
    line("attention", fmt::format("chunks of {}, top-k {}{}", c.chunk_size, c.top_k,
                                  checkpoint->chunk_settings_recorded ? "" : " (not recorded in the file)"));
  }
  line("vocabulary", fmt::format("{} tokens, tokenizer: {}", c.vocab, tokenizer_name));
  std::string dtypes;
  for (const auto& [dtype, elements] : summary.dtypes) {
    dtypes += fmt::format("{}{} {}", dtypes.empty() ? "" : ", ", dtype, millions(elements));
  }
  line("types", dtypes);
  line("parameters",
       fmt::format("{} in {}", millions(summary.total.parameters), human_bytes(summary.total.bytes)));
  for (const auto& [part, numbers] : summary.parts) {
    line("  " + part, fmt::format("{:>12}  {:>9}", millions(numbers.parameters), human_bytes(numbers.bytes)));
  }
  line("state", human_bytes(state_bytes) + " for each sequence" +
                    (c.sparse_blocks > 0
                         ? fmt::format(", and {} for each token (bf16)", human_bytes(kv_bytes_per_token))
                         : ""));
  print(text);
}

}  // namespace

void add_info(CLI::App& app) {
  auto* command =
      app.add_subcommand("info", "Show a model's architecture, sizes, types, memory and tokenizer");
  auto options = std::make_shared<RunOptions>();
  auto json = std::make_shared<bool>(false);
  add_model_argument(*command, *options);
  add_chunk_options(*command, *options);
  add_vocabulary_option(*command, *options);
  command->add_flag("--json", *json, "Print one JSON object");
  command->callback([options, json] { run(*options, *json); });
}

}  // namespace rwkvx::cli
