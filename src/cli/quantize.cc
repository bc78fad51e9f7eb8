#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "cli/terminal.h"
#include "cli/write_model.h"
#include "evaluation/divergence.h"
#include "evaluation/documents.h"
#include "evaluation/grid.h"
#include "model/quantise_plan.h"
#include "tensor/quantise.h"

namespace rwkvx::cli {
namespace {

struct QuantizeOptions {
  WriteModelOptions write;
  std::string type;
  std::vector<std::string> keep, set, report;
  std::string max_tokens;
};

std::vector<QuantisePlan::Override> overrides_of(const QuantizeOptions& o) {
  std::vector<QuantisePlan::Override> overrides;
  for (const std::string& pattern : o.keep) overrides.push_back({pattern, std::nullopt});
  for (const std::string& text : o.set) {
    const size_t split = text.rfind('=');
    const auto type = split == std::string::npos ? std::nullopt : dtype_named(text.substr(split + 1));
    if (!type ||
        !(is_computable(*type) || *type == DType::f32 || *type == DType::bf16 || *type == DType::f16)) {
      throw UsageError(
          fmt::format("--set {}: write NAMES=TYPE, as in --set 'blocks.*.att.value.weight=q6_k'; "
                      "types are those of --type, and f32",
                      printable(text)));
    }
    overrides.push_back({text.substr(0, split), type});
  }
  return overrides;
}

/// A pattern that fits nothing is a mistake that would show in the file's size only.
void check_overrides(const QuantisePlan& plan, const ModelConfig& config, const std::string& model) {
  const std::vector<TensorSpec> specs = tensor_list(config);
  for (const auto& [pattern, type] : plan.overrides) {
    const auto fits = [&](const TensorSpec& spec) {
      return is_matrix(spec.role) && fits_name(pattern, spec.name);
    };
    if (std::any_of(specs.begin(), specs.end(), fits)) continue;
    throw UsageError(
        fmt::format("{}: {} has no matrix of such a name; names are like "
                    "blocks.0.att.key.weight, moba.0.ffn.value.weight and head.weight",
                    type ? fmt::format("--set {}={}", printable(pattern), name(*type))
                         : fmt::format("--keep {}", printable(pattern)),
                    model));
  }
}

using Texts = std::vector<std::vector<TokenId>>;

/// Read before anything is written.
Texts read_texts(const QuantizeOptions& o, const Checkpoint& checkpoint) {
  Texts texts;
  if (o.report.empty()) return texts;
  const int64_t most = o.max_tokens.empty() ? 0 : parse_count(o.max_tokens, "--max-tokens");
  if (most == 1) throw UsageError("--max-tokens 1: the first token of a text is not predicted; ask for more");
  const auto tokenizer = load_tokenizer(checkpoint, o.write.run.vocabulary_path());
  const std::vector<Path> files(o.report.begin(), o.report.end());
  for (const Document& document : read_documents(files)) {
    texts.push_back(tokens_of(document, *tokenizer, most));
  }
  const auto long_enough = [](const auto& tokens) { return tokens.size() > 1; };
  if (std::none_of(texts.begin(), texts.end(), long_enough)) {
    fail("--report: {}: there is no text in it", o.report.front());
  }
  return texts;
}

void report(const QuantizeOptions& o, const Texts& texts) {
  RunOptions output = o.write.run;
  output.model = o.write.output;
  ModelOptions exact = o.write.run.model_options();
  exact.precision = Precision::f32;
  exact.kv.dtype = std::nullopt;
  const auto source = load_model(exact), quantised = load_model(output.model_options());
  uint64_t total = 0;
  for (const auto& tokens : texts) total += tokens.size();
  Divergence divergence(source, quantised);
  ProgressBar bar("report", "tokens");
  const Progress progress = bar.callback();
  DivergenceSums sums;
  uint64_t before = 0;
  for (const auto& tokens : texts) {
    sums += divergence.of(tokens, [&](uint64_t done, uint64_t) { progress(before + done, total); });
    before += tokens.size();
  }
  bar.clear();
  const auto tokens = static_cast<double>(sums.tokens);
  std::string text = fmt::format("{:<10}{:>12}{:>12}{:>12}{:>10}{:>10}\n", "", "bits/token", "perplexity",
                                 "KL (nats)", "same top", "size");
  const auto line = [&](std::string_view name, double nats, const std::string& rest,
                        const std::string& file) {
    text += fmt::format("{:<10}{:>12.4f}{:>12.4f}{}{:>10}\n", name, nats / tokens / std::numbers::ln2,
                        std::exp(nats / tokens), rest, human_bytes(std::filesystem::file_size(file)));
  };
  line("before", sums.source_nats, fmt::format("{:>22}", ""), o.write.run.model);
  line(o.type, sums.nats,
       fmt::format("{:>12.6f}{:>9.2f}%", sums.kl / tokens, 100 * static_cast<double>(sums.same_top) / tokens),
       o.write.output);
  text += fmt::format("perplexity {:+.3f}% over {} tokens\n",
                      100 * std::expm1((sums.nats - sums.source_nats) / tokens), sums.tokens);
  print(text);
}

void run(const QuantizeOptions& o) {
  const FileFormat format = format_of(o.write);
  QuantisePlan plan{*dtype_named(o.type), overrides_of(o)};
  if (is_quantised(plan.type) && format != FileFormat::gguf) {
    throw UsageError(
        fmt::format("{}: only GGUF holds quantised weights; end the name in .gguf", o.write.output));
  }
  for (const std::string& file : o.report) {
    if (!std::filesystem::exists(file))
      throw UsageError(fmt::format("--report {}: there is no such file", file));
  }
  const auto checkpoint = open_checkpoint(o.write.run.model, o.write.run.checkpoint_options());
  check_overrides(plan, checkpoint->config, o.write.run.model);
  const Texts texts = read_texts(o, *checkpoint);
  write_model(*checkpoint, o.write, "quantize",
              [plan](const TensorSpec& spec, DType found) { return plan.type_of(spec, found); });
  if (!texts.empty()) report(o, texts);
}

}  // namespace

void add_quantize(CLI::App& app) {
  auto* command = app.add_subcommand("quantize", "Make a model's weights smaller, and measure what it costs");
  auto o = std::make_shared<QuantizeOptions>();
  add_write_model_arguments(*command, o->write);
  command
      ->add_option(
          "--type", o->type,
          "q8_0, q6_k, q5_k, q4_k, q4_0, bf16 or f16. Embedding, head and low-rank matrices stay finer")
      ->check(CLI::IsMember({"q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "bf16", "f16"}))
      ->required();
  command->add_option("--keep", o->keep, "Matrices to leave as they are, by name: 'blocks.0.*'");
  command->add_option("--set", o->set, "Matrices of another type: 'blocks.*.att.value.weight=q6_k'");
  auto* report = command->add_option(
      "--report", o->report,
      "Texts (files, .jsonl, folders) on which loss and divergence are measured afterwards");
  command->add_option("--max-tokens", o->max_tokens, "For --report: read only this much of each text (16k)")
      ->needs(report);
  add_run_options(*command, o->write.run, "bf16");
  add_vocabulary_option(*command, o->write.run);
  command->callback([o] { run(*o); });
}

}  // namespace rwkvx::cli
