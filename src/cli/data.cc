// rwkvx data: token files for training.
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/random.h"
#include "cli/options.h"
#include "cli/show_batch.h"
#include "cli/terminal.h"
#include "training/magic_prime.h"
#include "training/pack.h"
#include "training/prepare.h"
#include "training/run_data.h"

namespace rwkvx::cli {
namespace {

/// Which tokenizer: flags of prepare and sample.
struct VocabularyFlags {
  std::string model, vocabulary;

  void add(CLI::App& app) {
    app.add_option("--model", model, "Use the tokenizer of this model");
    app.add_option("--vocab", vocabulary,
                   "Use this World vocabulary (rwkv_vocab_v20230424.txt), or 'byte' for bytes");
  }
  std::shared_ptr<const Tokenizer> load() const {
    if (model.empty() && vocabulary.empty())
      throw UsageError("pass --vocab FILE (or 'byte') or --model MODEL to say whose tokens are meant");
    const auto file = vocabulary.empty() ? std::nullopt : std::optional<Path>(vocabulary);
    // Chunk settings do not matter to tokens, and giving them keeps open_checkpoint from asking for them.
    return model.empty() ? load_vocabulary(*file) : load_tokenizer(*open_checkpoint(model, {1, 1}), file);
  }
};

struct PrepareFlags {
  std::vector<std::string> inputs;
  std::string output, format, document_end = "auto";
  VocabularyFlags vocabulary;
  PrepareOptions options;
};

std::optional<TokenId> document_end(const std::string& flag, const Tokenizer& tokenizer) {
  if (flag == "none") return std::nullopt;
  if (flag != "auto") return static_cast<TokenId>(std::stol(flag));
  const TokenId id = tokenizer.end_of_document();
  return id < 0 ? std::nullopt : std::optional(id);
}

std::string document_end_check(const std::string& flag) {
  if (flag == "auto" || flag == "none") return "";
  const bool number = !flag.empty() && flag.size() < 10 &&
                      std::all_of(flag.begin(), flag.end(), [](char c) { return c >= '0' && c <= '9'; });
  return number ? "" : "is not 'auto', 'none' or a token id";
}

void prepare(PrepareFlags& flags) {
  if (flags.format == "jsonl") flags.options.text.format = TextFormat::jsonl;
  if (flags.format == "text") flags.options.text.format = TextFormat::text;
  const auto tokenizer = flags.vocabulary.load();
  flags.options.document_end = document_end(flags.document_end, *tokenizer);
  const std::vector<Path> inputs(flags.inputs.begin(), flags.inputs.end());
  watch_interrupt();
  ProgressBar bar("prepare", "bytes");
  const PrepareReport report =
      prepare_tokens(inputs, flags.output, *tokenizer, flags.options, bar.callback());
  bar.clear();
  fmt::print(stderr, "rwkvx: wrote {} and .idx: {} documents, {} tokens from {}\n",
             token_data_path(flags.output).string(), report.documents, report.tokens,
             human_bytes(report.bytes));
  if (report.empty_documents > 0)
    fmt::print(stderr, "rwkvx: left out {} documents without text\n", report.empty_documents);
  if (report.bad_lines > 0) fmt::print(stderr, "rwkvx: left out {} bad lines\n", report.bad_lines);
}

struct PackFlags {
  std::string input, output;
  PackOptions options;
};

void pack(const PackFlags& flags) {
  const TokenFile input = TokenFile::open(flags.input);
  if (std::error_code ignored;
      std::filesystem::equivalent(token_data_path(flags.input), token_data_path(flags.output), ignored)) {
    throw UsageError("the output is the input itself; give it another name");
  }
  watch_interrupt();
  ProgressBar bar("pack", "tokens");
  const PackReport report = pack_tokens(input, flags.output, flags.options, bar.callback());
  bar.clear();
  fmt::print(stderr,
             "rwkvx: wrote {} and .idx: {} sequences of {} tokens cut from long documents, {} joined from "
             "short ones; {} tokens left out\n",
             token_data_path(flags.output).string(), report.long_sequences, flags.options.length,
             report.short_sequences, report.left_out);
}

struct DataInfoFlags {
  std::string input;
  uint64_t context = 0;
  bool json = false;
};

void show_info(const DataInfoFlags& flags) {
  const TokenFile file = TokenFile::open(flags.input);
  std::vector<uint64_t> sizes(file.documents());
  for (uint64_t i = 0; i < sizes.size(); ++i) sizes[i] = file.document(i).size;
  std::sort(sizes.begin(), sizes.end());
  TokenId largest = 0;
  std::vector<TokenId> block(size_t{1} << 16);
  watch_interrupt();
  ProgressBar bar("read", "tokens");
  const Progress progress = bar.callback();
  for (uint64_t begin = 0; begin < file.tokens(); begin += block.size()) {
    block.resize(std::min<uint64_t>(block.size(), file.tokens() - begin));
    file.read(begin, block);
    largest = std::max(largest, *std::max_element(block.begin(), block.end()));
    progress(begin, file.tokens());
  }
  bar.clear();
  nlohmann::ordered_json json{{"file", file.path().string()},  {"type", name(file.type())},
                              {"weights", file.marked()},      {"tokens", file.tokens()},
                              {"documents", file.documents()}, {"largest_token", largest}};
  if (!sizes.empty()) {
    json["shortest_document"] = sizes.front();
    json["median_document"] = sizes[sizes.size() / 2];
    json["longest_document"] = sizes.back();
  }
  for (const uint64_t length : {1024, 4096, 16384, 65536}) {
    uint64_t count = 0, tokens = 0;
    for (auto it = std::lower_bound(sizes.begin(), sizes.end(), length); it != sizes.end(); ++it) {
      ++count;
      tokens += *it;
    }
    json[fmt::format("documents_of_{}_and_more", length)] = count;
    json[fmt::format("tokens_in_documents_of_{}_and_more", length)] = tokens;
  }
  if (flags.context > 0) {
    json["context"] = flags.context;
    json["windows"] = file.tokens() / flags.context;
    const auto prime = magic_prime(file.tokens(), flags.context);
    json["magic_prime"] = prime ? nlohmann::ordered_json(*prime) : nlohmann::ordered_json();
  }
  if (flags.json) return print(json.dump(2) + "\n");
  std::string out;
  for (const auto& [key, value] : json.items()) {
    std::string words = key;
    std::replace(words.begin(), words.end(), '_', ' ');
    fmt::format_to(std::back_inserter(out), "{:<44}{}\n", words,
                   value.is_string() ? value.get<std::string>() : value.dump());
  }
  print(out);
}

struct SampleFlags {
  std::string input, mixture;
  int64_t context = 0, phase = 1;
  VocabularyFlags vocabulary;
  uint64_t count = 1, seed = 0, most = 500;
  std::optional<uint64_t> document;
};

/// Samples of a mixture as a run would train on them.
void show_mixture(const SampleFlags& flags) {
  const auto tokenizer = flags.vocabulary.load();
  const int64_t vocab = tokenizer->vocab_size();
  const auto mixture = read_mixture(flags.mixture, flags.input, flags.seed, *tokenizer, vocab);
  MixtureView view{flags.context, flags.seed, vocab, nullptr, {}};
  if (!mixture->phases().empty()) {
    if (static_cast<size_t>(flags.phase) > mixture->phases().size())
      fail("{}: there is no phase {}; it has {}", flags.mixture, flags.phase, mixture->phases().size());
    view.phase = &mixture->phases()[static_cast<size_t>(flags.phase) - 1];
    if (view.context == 0) view.context = view.phase->context;
  }
  if (view.context == 0) view.context = 1024;
  const auto data = make_mixture_data(mixture, view);
  for (uint64_t i = 0; i < flags.count; ++i) {
    TrainBatch batch;
    data->add(i, batch);
    const auto resets = std::count(batch.resets.begin(), batch.resets.end(), 1);
    print(fmt::format("--- sample {}: {} tokens, {} answers, {} resets\n", i, batch.rows(),
                      batch.answers.size(), resets));
    print(shown(batch, *tokenizer, ::isatty(STDOUT_FILENO) != 0));
  }
}

void show_sample(const SampleFlags& flags) {
  if (!flags.mixture.empty()) return show_mixture(flags);
  if (flags.input.empty()) throw UsageError("name a token file, or pass --mixture");
  const TokenFile file = TokenFile::open(flags.input);
  const auto tokenizer = flags.vocabulary.load();
  if (file.documents() == 0) fail("{}: there are no documents in it", file.path().string());
  if (flags.document && *flags.document >= file.documents()) {
    fail("{}: there is no document {}; it has {}, numbered from 0", file.path().string(), *flags.document,
         file.documents());
  }
  Random random(flags.seed);
  for (uint64_t i = 0; i < (flags.document ? 1 : flags.count); ++i) {
    const uint64_t index = flags.document.value_or(random.next() % file.documents());
    const TokenFile::Range range = file.document(index);
    std::vector<TokenId> tokens(std::min(range.size, flags.most));
    file.read(range.begin, tokens, tokenizer->vocab_size());
    print(fmt::format("--- document {} of {}, {} tokens{}\n", index, file.documents(), range.size,
                      tokens.size() < range.size ? fmt::format(", the first {}", tokens.size()) : ""));
    if (file.marked() && tokens.size() > 1) {
      std::vector<TokenMark> marks(tokens.size());
      file.read_marks(range.begin, marks);
      TrainBatch batch;
      add_sequence(tokens, marks, batch);
      print(shown(batch, *tokenizer, ::isatty(STDOUT_FILENO) != 0));
      continue;
    }
    std::string text;
    for (const TokenId id : tokens)
      text += id == tokenizer->end_of_document() ? std::string("<end of document>")
                                                 : std::string(tokenizer->token_bytes(id));
    print(text + "\n");
  }
}

}  // namespace

void add_data(CLI::App& app) {
  auto* data = app.add_subcommand("data", "Token files for training: make, pack, describe, show");
  data->require_subcommand(1);

  auto* command =
      data->add_subcommand("prepare", "Tokenize JSON lines and plain text into NAME.bin and NAME.idx");
  auto prepare_flags = std::make_shared<PrepareFlags>();
  command
      ->add_option("FILES", prepare_flags->inputs,
                   "Text files: .jsonl (one object in each line), or plain text")
      ->required();
  command->add_option("--out", prepare_flags->output, "NAME of NAME.bin and NAME.idx")->required();
  prepare_flags->vocabulary.add(*command);
  command
      ->add_option("--field", prepare_flags->options.text.field,
                   "Field of the JSON objects that holds the text")
      ->capture_default_str();
  command->add_option("--format", prepare_flags->format, "jsonl or text, when the names do not say it")
      ->check(CLI::IsMember({"jsonl", "text"}));
  command->add_option("--separator", prepare_flags->options.text.separator,
                      "Text between the documents of a plain text file (default: a file is one document)");
  command
      ->add_option("--document-end", prepare_flags->document_end,
                   "Token behind each document: an id, none, or auto (World: 0; bytes: none)")
      ->check(CLI::Validator(document_end_check, "ID"))
      ->capture_default_str();
  command->add_flag("--skip-bad-lines", prepare_flags->options.skip_bad_lines,
                    "Leave out JSON lines that cannot be used, and count them");
  command->add_option("--threads", prepare_flags->options.threads, "Threads; 0 for one on each core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->callback([prepare_flags] { prepare(*prepare_flags); });

  command = data->add_subcommand("pack", "Cut and join documents into sequences of one length");
  auto pack_flags = std::make_shared<PackFlags>();
  command->add_option("NAME", pack_flags->input, "Token file to read")->required();
  command->add_option("--out", pack_flags->output, "Token file to write")->required();
  command->add_option("--length", pack_flags->options.length, "Tokens of each sequence")
      ->check(CLI::Range(uint64_t{2}, uint64_t{INT32_MAX}))
      ->capture_default_str();
  command->add_flag("--long-only", pack_flags->options.long_only,
                    "Only sequences from documents that fill them; leave out the rest");
  command->add_option("--shortest", pack_flags->options.shortest, "Leave out documents with fewer tokens")
      ->capture_default_str();
  command->callback([pack_flags] { pack(*pack_flags); });

  command = data->add_subcommand("info", "Sizes of a token file");
  auto info_flags = std::make_shared<DataInfoFlags>();
  command->add_option("NAME", info_flags->input, "Token file")->required();
  command
      ->add_option("--context", info_flags->context,
                   "Also say how many windows of so many tokens it has, and RWKV-LM's magic prime")
      ->check(CLI::Range(uint64_t{1}, uint64_t{INT32_MAX}));
  command->add_flag("--json", info_flags->json, "As JSON");
  command->callback([info_flags] { show_info(*info_flags); });

  command =
      data->add_subcommand("sample", "Show documents of a token file, or samples of a mixture, as text");
  auto sample_flags = std::make_shared<SampleFlags>();
  command->add_option("NAME", sample_flags->input, "Token file; with --mixture: the text of its sources");
  command->add_option("--mixture", sample_flags->mixture, "Show what this mixture trains on (.json)")
      ->check(CLI::ExistingFile);
  command
      ->add_option("--context", sample_flags->context, "Tokens of a mixture's samples (default: the phase's)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--phase", sample_flags->phase, "Phase of the mixture, from 1")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  sample_flags->vocabulary.add(*command);
  command->add_option("--count", sample_flags->count, "How many, drawn at random")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 32))
      ->capture_default_str();
  command->add_option("--document", sample_flags->document, "This one, numbered from 0");
  command->add_option("--seed", sample_flags->seed, "Draws others")->capture_default_str();
  command->add_option("--length", sample_flags->most, "Tokens of each to show at most")
      ->check(CLI::Range(uint64_t{1}, uint64_t{INT32_MAX}))
      ->capture_default_str();
  command->callback([sample_flags] { show_sample(*sample_flags); });
}

}  // namespace rwkvx::cli
