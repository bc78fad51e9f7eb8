#include "training/chat_data.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/chat_template.h"
#include "training/documents.h"

namespace rwkvx {
namespace {

struct Conversation {
  std::vector<TokenId> tokens;
  std::vector<uint8_t> counts;  ///< [tokens]: the model is to say this one
};

ChatTurn::Role role_named(const std::string& name) {
  if (name == "user" || name == "human") return ChatTurn::Role::user;
  if (name == "assistant" || name == "gpt" || name == "model") return ChatTurn::Role::assistant;
  if (name == "system") return ChatTurn::Role::system;
  fail("a turn of \"{}\"; known are user, assistant and system", printable(name));
}

const char* speaker(ChatTurn::Role role) {
  switch (role) {
    case ChatTurn::Role::system:
      return "System:";
    case ChatTurn::Role::user:
      return "User:";
    case ChatTurn::Role::assistant:
      return "Assistant:";
  }
  return "";
}

/// Prompt and answer are tokenized apart, as they are when the model is used.
Conversation tokenized(const std::vector<ChatTurn>& turns, const Tokenizer& tokenizer) {
  Conversation out;
  std::string prompt;
  const auto add = [&](std::string_view text, bool counts) {
    tokenizer.encode(text, out.tokens);
    out.counts.resize(out.tokens.size(), counts);
  };
  for (const ChatTurn& turn : turns) {
    const std::string message = clean_message(turn.text);
    if (turn.role != ChatTurn::Role::assistant) {
      prompt += fmt::format("{}{}{}\n\n", speaker(turn.role), message.empty() ? "" : " ", message);
      continue;
    }
    add(prompt + speaker(turn.role), false);
    add((message.empty() ? "" : " ") + message + "\n\n", true);
    prompt.clear();
  }
  if (out.tokens.empty()) fail("the assistant says nothing in this conversation");
  if (const TokenId end = tokenizer.end_of_document(); end >= 0) {
    out.tokens.push_back(end);
    out.counts.push_back(1);
  }
  return out;
}

class ChatData final : public TrainingData {
 public:
  ChatData(std::vector<Conversation> conversations, uint64_t seed)
      : conversations_(std::move(conversations)), seed_(seed) {}

  uint64_t epoch() const override { return conversations_.size(); }

  void add(uint64_t index, TrainBatch& batch) const override {
    const uint64_t count = conversations_.size();
    const uint64_t key = (seed_ + 1) * 0x9e3779b97f4a7c15 + index / count;
    const Conversation& c = conversations_[shuffled_index(index % count, count, key)];
    for (size_t i = 0; i + 1 < c.tokens.size(); ++i) {
      batch.tokens.push_back(c.tokens[i]);
      batch.targets.push_back(c.counts[i + 1] ? c.tokens[i + 1] : -1);
    }
    if (!batch.weights.empty()) batch.weights.resize(batch.tokens.size(), 1.0f);
    if (!batch.resets.empty()) batch.resets.resize(batch.tokens.size());
    batch.offsets.push_back(batch.rows());
  }

 private:
  std::vector<Conversation> conversations_;
  uint64_t seed_;
};

}  // namespace

std::vector<ChatTurn> chat_turns(std::string_view line) {
  const auto json = nlohmann::json::parse(line.begin(), line.end(), nullptr, false);
  if (!json.is_object()) fail("no JSON object");
  const bool openai = json.contains("messages");
  const char *list = openai ? "messages" : "conversations", *who = openai ? "role" : "from",
             *what = openai ? "content" : "value";
  if (!json.contains(list) || !json[list].is_array())
    fail("no list \"messages\" or \"conversations\" of the turns of a chat");
  std::vector<ChatTurn> turns;
  for (const auto& turn : json[list]) {
    if (!turn.is_object() || !turn.contains(who) || !turn[who].is_string() || !turn.contains(what) ||
        !turn[what].is_string()) {
      fail("turn {} is no object with the texts \"{}\" and \"{}\"", turns.size() + 1, who, what);
    }
    turns.push_back({role_named(turn[who].get<std::string>()), turn[what].get<std::string>()});
  }
  return turns;
}

std::unique_ptr<TrainingData> read_chat_data(const Path& path, const Tokenizer& tokenizer,
                                             const ChatOptions& options) {
  const auto file = MappedFile::open(path);
  std::string_view rest(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  std::vector<Conversation> conversations;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    try {
      Conversation c = tokenized(chat_turns(line), tokenizer);
      const size_t most = static_cast<size_t>(options.context) + 1;
      c.tokens.resize(std::min(c.tokens.size(), most));
      c.counts.resize(c.tokens.size());
      for (const TokenId id : c.tokens) check_token_id(id, options.vocab);
      if (std::find(c.counts.begin() + 1, c.counts.end(), 1) == c.counts.end())
        fail("the first {} tokens hold no answer; choose a larger --context", options.context);
      conversations.push_back(std::move(c));
    } catch (const Error& error) {
      fail("{}, line {}: {}", path.string(), line_number(*file, line.data()), error.what());
    }
  }
  if (conversations.empty()) fail("{}: there are no conversations in it", path.string());
  return std::make_unique<ChatData>(std::move(conversations), options.seed);
}

}  // namespace rwkvx
