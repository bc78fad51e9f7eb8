#include "runtime/conversation.h"

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace rwkvx {

Conversation::Conversation(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
                           ConversationOptions options)
    : tokenizer_(std::move(tokenizer)), options_(std::move(options)), session_(std::move(model)) {
  check_sampler_options(options_.sampler);
  for (std::string& stop : ChatTemplate::stop_strings()) options_.generation.stops.push_back(std::move(stop));
}

Generation Conversation::say(std::string_view message, const std::function<void(std::string_view)>& show,
                             const std::atomic<bool>* interrupted, const Progress& progress) {
  Before before{session_.fork(), answered_};
  const std::string fed =
      turns_.empty() ? options_.format.first_turn(message) : options_.format.next_turn(message, answered_);
  try {
    session_.append(tokenizer_->encode(fed));
    SamplerOptions sampling = options_.sampler;
    sampling.seed += answers_++;
    Sampler sampler(sampling);
    std::string answer;
    Generation generation = generate(
        session_, *tokenizer_, sampler, options_.generation,
        [&](std::string_view piece) {
          answer += piece;
          show(piece);
        },
        interrupted, progress);
    std::vector<TokenId> known;
    for (const TokenId id : generation.tokens) {
      if (id < tokenizer_->vocab_size()) known.push_back(id);
    }
    answered_ = tokenizer_->decode(known);
    turns_.push_back({std::string(message), std::move(answer)});
    before_.push_back(std::move(before));
    if (before_.size() > kUndoDepth) before_.erase(before_.begin());
    return generation;
  } catch (...) {
    session_ = std::move(before.session);
    answered_ = std::move(before.answered);
    throw;
  }
}

void Conversation::need_turn() const {
  if (turns_.empty()) fail("there is no turn to take back");
  if (before_.empty())
    fail("turns from before /load, and more than {} turns back, cannot be taken back", kUndoDepth);
}

void Conversation::undo() {
  need_turn();
  session_ = std::move(before_.back().session);
  answered_ = std::move(before_.back().answered);
  before_.pop_back();
  turns_.pop_back();
}

Generation Conversation::regenerate(const std::function<void(std::string_view)>& show,
                                    const std::atomic<bool>* interrupted, const Progress& progress) {
  need_turn();
  const std::string message = turns_.back().message;
  undo();
  return say(message, show, interrupted, progress);
}

void Conversation::reset() {
  session_.reset();
  turns_.clear();
  before_.clear();
  answered_.clear();
}

void Conversation::save(const Path& path) const {
  nlohmann::json turns = nlohmann::json::array();
  for (const Turn& turn : turns_) turns.push_back({{"message", turn.message}, {"answer", turn.answer}});
  // Answers may end inside a character, so their bytes go as numbers.
  const std::vector<uint8_t> answered(answered_.begin(), answered_.end());
  const nlohmann::json extra = {{"chat", turns}, {"answered", answered}, {"answers", answers_}};
  session_.save(path, extra.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
}

void Conversation::load(const Path& path) {
  Session loaded = session_.fork();
  const auto extra = nlohmann::json::parse(loaded.load(path), nullptr, false);
  try {
    std::vector<Turn> turns;
    for (const auto& turn : extra.at("chat")) {
      turns.push_back({turn.at("message").get<std::string>(), turn.at("answer").get<std::string>()});
    }
    const auto answered = extra.at("answered").get<std::vector<uint8_t>>();
    answers_ = extra.at("answers").get<uint64_t>();
    answered_.assign(answered.begin(), answered.end());
    turns_ = std::move(turns);
  } catch (const nlohmann::json::exception&) {
    fail("{}: a state without a conversation; it was saved by generate, not by chat", path.string());
  }
  session_ = std::move(loaded);
  before_.clear();
}

}  // namespace rwkvx
