#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/input.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "evaluation/grid.h"
#include "evaluation/selection_recall.h"
#include "runtime/session.h"

namespace rwkvx::cli {
namespace {

struct RecallOptions {
  RunOptions run;
  TextInput text;
  std::string length;
  int64_t queries = 64, last = 0;
  bool json = false;
};

double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

nlohmann::ordered_json to_json(const SelectionRecall& recall, const std::vector<SelectionRule>& rules,
                               int64_t chunk_size) {
  nlohmann::ordered_json heads = nlohmann::ordered_json::array(), described;
  for (const SelectionRule& rule : rules) {
    described[rule.name] = {{"description", rule.description},
                            {"floats_per_chunk", rule.kept_floats(chunk_size)}};
  }
  for (size_t i = 0; i < recall.cells.size(); ++i) {
    const SelectionRecall::Cell& cell = recall.cells[i];
    nlohmann::ordered_json head = {
        {"block", static_cast<int64_t>(i) / recall.heads},
        {"head", static_cast<int64_t>(i) % recall.heads},
        {"queries", cell.queries},
        {"weight_on_earlier_chunks", share(cell.outside, static_cast<double>(cell.queries))},
        {"best_possible", share(cell.oracle, cell.outside)}};
    for (size_t r = 0; r < cell.recalled.size(); ++r) {
      head[rules[r].name] = {
          {"recall", share(cell.recalled[r], cell.outside)},
          {"of_best", share(cell.recalled[r], cell.oracle)},
          {"first_chosen", share(static_cast<double>(cell.first[r]), static_cast<double>(cell.queries))}};
    }
    heads.push_back(head);
  }
  return {{"rules", described}, {"heads", heads}};
}

/// A row for each rule: recall and, behind the slash, how often the chunk of most weight is among the chosen.
void print_table(const SelectionRecall& recall, const std::vector<SelectionRule>& rules, int64_t chunk_size) {
  const auto row = [&](const std::string& name, const std::string& cost, const auto& cell_text) {
    std::string line = fmt::format("{:<10} {:>8}", name, cost);
    for (size_t i = 0; i < recall.cells.size(); ++i) line += fmt::format(" {:>12}", cell_text(i));
    print(line + "\n");
  };
  const auto H = static_cast<size_t>(recall.heads);
  row("rule", "floats", [&](size_t i) { return fmt::format("block {} h{}", i / H, i % H); });
  row("earlier", "", [&](size_t i) {
    return fmt::format("{:.4f}",
                       share(recall.cells[i].outside, static_cast<double>(recall.cells[i].queries)));
  });
  row("best", "", [&](size_t i) {
    return fmt::format("{:.4f}", share(recall.cells[i].oracle, recall.cells[i].outside));
  });
  for (size_t r = 0; r < rules.size(); ++r) {
    row(rules[r].name, std::to_string(rules[r].kept_floats(chunk_size)), [&](size_t i) {
      const SelectionRecall::Cell& cell = recall.cells[i];
      return fmt::format("{:.4f}/{:.2f}", share(cell.recalled[r], cell.outside),
                         share(static_cast<double>(cell.first[r]), static_cast<double>(cell.queries)));
    });
  }
}

void run(const RecallOptions& o) {
  auto checkpoint = open_checkpoint(o.run.model, o.run.checkpoint_options());
  const ModelConfig& config = checkpoint->config;
  if (config.sparse_blocks == 0) fail("{}: has no sparse attention to look at", o.run.model);
  const auto tokenizer = load_tokenizer(*checkpoint, o.run.vocabulary_path());
  std::vector<TokenId> tokens = tokenizer->encode(o.text.read("--text, --file"));
  if (!o.length.empty()) {
    const auto length = static_cast<size_t>(parse_count(o.length, "--length"));
    if (length > tokens.size()) fail("--length {}: the text has only {} tokens", o.length, tokens.size());
    tokens.resize(length);
  }
  const auto total = static_cast<int64_t>(tokens.size());
  const int64_t choice = config.chunk_size * config.top_k;  // from here on there is one
  if (total <= choice) {
    fail("the text has {} tokens; with chunks of {} and top-k {} a choice begins after {}", total,
         config.chunk_size, config.top_k, choice);
  }
  const int64_t from = std::max(choice, o.last > 0 ? total - o.last : choice);
  const int64_t stride = std::max<int64_t>(1, (total - from) / o.queries);
  const ModelOptions options = o.run.model_options();
  std::shared_ptr<Ops> ops = make_ops({options.backend, options.precision, options.threads});
  if (!ops->reads_host_memory()) {
    throw UsageError(fmt::format(
        "recall reads queries and keys where they lie; it does not go with --device {}", options.backend));
  }
  auto probe = std::make_shared<SelectionProbe>(std::move(ops), config.sparse_blocks, from, stride);
  KvOptions kv = options.kv;
  if (kv.policy == KvPolicy::bounded)
    throw UsageError("--kv bounded: the oracle needs all keys; use full or disk");
  Session session(std::make_shared<const Model>(checkpoint, probe, kv));
  session.append(tokens);
  watch_interrupt();
  ProgressBar bar("recall", "tokens");
  session.settle(bar.callback());
  bar.clear();
  const auto rules = selection_rules();
  if (o.json) {
    nlohmann::ordered_json out = to_json(probe->recall(), rules, config.chunk_size);
    out["tokens"] = total;
    out["chunk_size"] = config.chunk_size;
    out["chunk_top_k"] = config.top_k;
    print(out.dump(2) + "\n");
  } else {
    print_table(probe->recall(), rules, config.chunk_size);
  }
}

}  // namespace

void add_recall(CLI::App& app) {
  auto* command = app.add_subcommand("recall",
                                     "How much of full attention's weight on earlier chunks lies in those "
                                     "that a rule would choose, by sparse "
                                     "block and head");
  auto o = std::make_shared<RecallOptions>();
  add_model_argument(*command, o->run);
  command->add_option("--text", o->text.text, "The text to read");
  command->add_option("--file", o->text.file, "The text from a file; - for stdin");
  command->add_option("--length", o->length, "Only the first so many tokens (64k)");
  command->add_option("--queries", o->queries, "Positions to look at, evenly spaced")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--last", o->last, "Only among so many last positions: a question and its answer")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_flag("--json", o->json, "Print one JSON object");
  add_run_options(*command, o->run, "f32");
  add_vocabulary_option(*command, o->run);
  command->callback([o] { run(*o); });
}

}  // namespace rwkvx::cli
