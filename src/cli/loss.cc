#include <algorithm>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "cli/options.h"
#include "cli/run_settings.h"
#include "cli/terminal.h"
#include "drawing/picture.h"
#include "evaluation/grid.h"
#include "evaluation/loss_report.h"
#include "evaluation/run_folder.h"

namespace rwkvx::cli {
namespace {

struct LossOptions {
  RunOptions run;  // its model is set for each
  std::vector<std::string> inputs;
  std::string buckets = "doubling", positions = "tokens", measure, max_tokens, min_tokens, out, picture;
  bool json = false;
};

struct Inputs {
  std::vector<std::string> models;
  std::vector<Path> documents;
};

Inputs sort_inputs(const std::vector<std::string>& inputs) {
  Inputs out;
  for (const std::string& input : inputs) {
    const std::string ending = Path(input).extension().string();
    if (ending == ".gguf" || ending == ".pth" || ending == ".pt" || ending == ".safetensors") {
      out.models.push_back(input);
    } else {
      out.documents.emplace_back(input);
    }
  }
  if (out.models.empty()) throw UsageError("no model is given; models end in .gguf, .pth or .safetensors");
  if (out.documents.empty())
    throw UsageError("no documents are given; name text files, .jsonl files or folders");
  return out;
}

LossMeasure measure_of(const std::string& name) {
  if (name == "bits-per-byte") return LossMeasure::bits_per_byte;
  return name == "loss" ? LossMeasure::loss : LossMeasure::perplexity;
}

/// How the losses of this command are computed and kept.
struct Loss {
  const LossOptions& options;
  Buckets buckets;
  PositionUnit unit;
  int64_t max_tokens, min_tokens;  // 0: any
  std::vector<Document> documents;
  std::optional<RunFolder> folder;

  ModelLoss of_model(const std::string& file, const std::string& place);
  std::string tokenizers;  // of the models so far
};

ModelLoss Loss::of_model(const std::string& file, const std::string& place) {
  RunOptions run = options.run;
  run.model = file;
  const auto model = load_model(run.model_options());
  const auto tokenizer = load_tokenizer(model->checkpoint(), run.vocabulary_path());
  if (tokenizers.empty()) tokenizers = tokenizer->name();
  if (tokenizers != tokenizer->name() && unit == PositionUnit::tokens) {
    log_warning(
        "{}: another tokenizer than before, so its positions are others; --positions bytes compares them",
        file);
  }
  const nlohmann::ordered_json settings = run_settings(run, *model, *tokenizer);
  const bool begins = tokenizer->end_of_document() >= 0;

  std::map<std::string, DocumentLoss> known;  // by hash of the text
  for (const auto& result : folder ? folder->results() : std::vector<nlohmann::ordered_json>()) {
    const std::string where = (folder->path() / "results.jsonl").string();
    if (result.value("model", nlohmann::ordered_json()) != settings) continue;
    known[result.value("hash", "")] = document_loss(result, where);
  }
  std::vector<DocumentLoss> losses;
  std::vector<std::pair<const Document*, std::string>> missing;
  uint64_t total = 0;
  for (const Document& document : documents) {
    const std::string hash = fmt::format("{:016x}", hash64(std::as_bytes(std::span(document.text))));
    if (const auto found = known.find(hash); found != known.end()) {
      losses.push_back(found->second);
      continue;
    }
    const size_t tokens = tokens_of(document, *tokenizer, max_tokens).size();
    const size_t own = tokens - (begins ? 1 : 0);
    if (tokens < 2 || own < static_cast<size_t>(min_tokens)) continue;
    total += tokens - 1;
    missing.emplace_back(&document, hash);
  }
  std::erase_if(losses, [&](const DocumentLoss& l) { return l.tokens < min_tokens; });
  if (!losses.empty()) {
    fmt::print(stderr, "rwkvx: {} of {} documents are done already in {}\n", losses.size(),
               losses.size() + missing.size(), options.out);
  }
  if (losses.empty() && missing.empty()) {
    fail("{}: none of {} documents has as many tokens as asked for (--min-tokens {})", file, documents.size(),
         min_tokens);
  }

  TokenLosses token_losses(model);
  ProgressBar bar("loss" + place, "tokens");
  const Progress progress = bar.callback();
  uint64_t before = 0;
  for (const auto& [document, hash] : missing) {
    const std::vector<TokenId> tokens = tokens_of(*document, *tokenizer, max_tokens);
    const auto values =
        token_losses.of(tokens, [&](uint64_t done, uint64_t) { progress(before + done, total); });
    before += tokens.size() - 1;
    losses.push_back(sum_by_position(document->name, tokens, values, begins, *tokenizer, buckets, unit));
    if (!folder) continue;
    nlohmann::ordered_json result = {{"model", settings}, {"hash", hash}};
    result.update(to_json(losses.back()));
    folder->add(std::move(result));
  }
  bar.clear();
  return summarise(Path(file).stem().string(), losses, buckets);
}

void run(const LossOptions& o) {
  const Inputs inputs = sort_inputs(o.inputs);
  const auto count = [](const std::string& text, const char* flag) {
    return text.empty() ? int64_t{0} : parse_count(text, flag);
  };
  check_picture_name(o.picture);
  Loss loss{o,
            Buckets(o.buckets == "doubling" ? 0 : parse_count(o.buckets, "--buckets")),
            o.positions == "bytes" ? PositionUnit::bytes : PositionUnit::tokens,
            count(o.max_tokens, "--max-tokens"),
            count(o.min_tokens, "--min-tokens"),
            read_documents(inputs.documents),
            std::nullopt,
            ""};
  if (loss.documents.empty()) fail("{}: there is no text in it", inputs.documents.front().string());
  if (!o.out.empty()) {
    loss.folder.emplace(
        o.out, nlohmann::ordered_json{
                   {"buckets", o.buckets}, {"positions", o.positions}, {"max_tokens", loss.max_tokens}});
  }

  watch_interrupt();
  std::vector<ModelLoss> models;
  try {
    for (size_t i = 0; i < inputs.models.size(); ++i) {
      models.push_back(loss.of_model(
          inputs.models[i],
          inputs.models.size() == 1 ? "" : fmt::format(" {} of {}", i + 1, inputs.models.size())));
    }
  } catch (const Interrupted&) {
    if (!o.out.empty()) {
      fmt::print(stderr, "rwkvx: finished documents are kept in {}; the same command goes on from there\n",
                 o.out);
    }
    throw;
  }

  const LossMeasure measure = measure_of(o.measure);
  LineChart chart = loss_chart(models, loss.buckets, loss.unit, measure);
  chart.title = "Loss by position";
  const auto documents = models.front().all.documents;
  chart.subtitle = documents == 1
                       ? "one document"
                       : fmt::format("{} documents; bars are standard errors over them", documents);
  const std::string svg = draw(chart);
  if (!o.picture.empty()) write_picture(o.picture, svg);
  if (!o.out.empty()) {
    write_picture(Path(o.out) / "loss.svg", svg);
    if (png_available()) write_picture(Path(o.out) / "loss.png", svg);
    AtomicFile csv(Path(o.out) / "results.csv");
    csv.write(loss_csv(models));
    csv.commit();
  }
  if (o.json) {
    print(json_text(loss_json(models), 2) + "\n");
  } else {
    print(loss_text(models, measure));
  }
}

}  // namespace

void add_loss(CLI::App& app) {
  auto* command = app.add_subcommand("loss", "Measure how well models predict long documents, by position");
  auto o = std::make_shared<LossOptions>();
  command
      ->add_option(
          "MODELS_AND_FILES", o->inputs,
          "One or several models (.gguf, .pth, .safetensors), then documents: text files, .jsonl with a "
          "\"text\" in each line, or folders")
      ->required();
  command
      ->add_option("--buckets", o->buckets,
                   "How positions are put together: doubling, or a width in tokens (4k)")
      ->capture_default_str();
  command
      ->add_option("--positions", o->positions,
                   "What positions count: tokens, or bytes to compare tokenizers")
      ->check(CLI::IsMember({"tokens", "bytes"}))
      ->capture_default_str();
  o->measure = "perplexity";
  command
      ->add_option("--measure", o->measure, "What table and picture show: perplexity, bits-per-byte or loss")
      ->check(CLI::IsMember({"perplexity", "bits-per-byte", "loss"}))
      ->capture_default_str();
  command->add_option("--max-tokens", o->max_tokens, "Read only this much of each document (64k)");
  command->add_option("--min-tokens", o->min_tokens,
                      "Leave out shorter documents, so that all buckets hold the same");
  command->add_option("--out", o->out,
                      "Folder for results.csv, results.jsonl and loss.svg; a run that stopped goes on");
  command->add_option("--picture", o->picture, "Line chart to write, .svg or .png");
  command->add_flag("--json", o->json, "Print one JSON object with all buckets of all models");
  add_run_options(*command, o->run, "bf16");
  add_vocabulary_option(*command, o->run);
  command->callback([o] { run(*o); });
}

}  // namespace rwkvx::cli
