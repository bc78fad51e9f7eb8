#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/input.h"
#include "cli/options.h"
#include "cli/terminal.h"

namespace rwkvx::cli {
namespace {

struct TokenizeOptions {
  std::string model;
  std::string vocabulary;
  TextInput input;
};

std::shared_ptr<const Tokenizer> tokenizer_of(const TokenizeOptions& options) {
  if (options.model.empty() && options.vocabulary.empty()) {
    throw UsageError("pass --model MODEL or --vocab FILE to say whose tokens are meant");
  }
  const std::optional<Path> vocabulary =
      options.vocabulary.empty() ? std::nullopt : std::optional<Path>(options.vocabulary);
  if (options.model.empty()) return load_vocabulary(*vocabulary);
  // Chunk settings do not matter to tokens, and giving them keeps open_checkpoint from asking for them.
  return load_tokenizer(*open_checkpoint(options.model, {1, 1}), vocabulary);
}

void add_common(CLI::App& command, TokenizeOptions& options, const char* what) {
  command.add_option("TEXT", options.input.text, what);
  command.add_option("--file", options.input.file, "Read it from a file; - for stdin (the default)");
  command.add_option("--model", options.model, "Use the tokenizer of this model");
  command.add_option("--vocab", options.vocabulary,
                     "Use this World vocabulary (rwkv_vocab_v20230424.txt), or 'byte'");
}

void tokenize(const TokenizeOptions& options) {
  const auto tokenizer = tokenizer_of(options);
  const std::vector<TokenId> ids = tokenizer->encode(options.input.read("TEXT, --file"));
  std::string out = "[";
  for (const TokenId id : ids)
    fmt::format_to(std::back_inserter(out), "{}{}", out.size() > 1 ? ", " : "", id);
  print(out + "]\n");
}

void detokenize(const TokenizeOptions& options) {
  const auto tokenizer = tokenizer_of(options);
  const auto json = nlohmann::json::parse(options.input.read("TEXT, --file"), nullptr, false);
  std::vector<TokenId> ids;
  bool fine = json.is_array();
  for (size_t i = 0; fine && i < json.size(); ++i) {
    fine = json[i].is_number_integer() && json[i] >= INT32_MIN && json[i] <= INT32_MAX;
    if (fine) ids.push_back(json[i].get<TokenId>());
  }
  if (!fine) fail("the token ids must be a JSON list of whole numbers, for instance [33155, 45]");
  print(tokenizer->decode(ids));
}

}  // namespace

void add_tokenize(CLI::App& app) {
  auto* command = app.add_subcommand("tokenize", "Text to token ids, as a JSON list");
  auto options = std::make_shared<TokenizeOptions>();
  add_common(*command, *options, "The text, any bytes");
  command->callback([options] { tokenize(*options); });
}

void add_detokenize(CLI::App& app) {
  auto* command = app.add_subcommand("detokenize", "Token ids to text");
  auto options = std::make_shared<TokenizeOptions>();
  add_common(*command, *options, "A JSON list of ids");
  command->callback([options] { detokenize(*options); });
}

}  // namespace rwkvx::cli
