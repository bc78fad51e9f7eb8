#include "training/run_data.h"

#include "base/assert.h"
#include "base/error.h"
#include "training/chat_data.h"

namespace rwkvx {
namespace {

constexpr uint64_t kLargestMixture = 1 << 20;  ///< bytes

std::shared_ptr<const Tokenizer> text_tokenizer(const TrainConfig& config, int64_t vocab) {
  if (config.vocab == "byte" || (config.vocab.empty() && vocab == 256)) return make_byte_tokenizer();
  if (config.vocab.empty()) {
    throw UsageError(
        "--chat and --mixture need the tokenizer: pass --vocab rwkv_vocab_v20230424.txt, or 'byte'");
  }
  return read_world_vocabulary(config.vocab);
}

Order order_named(const std::string& name) {
  return name == "magic" ? Order::magic : name == "sequential" ? Order::sequential : Order::shuffled;
}

}  // namespace

std::shared_ptr<const Mixture> read_mixture(const Path& file, const std::string& data, uint64_t seed,
                                            const Tokenizer& tokenizer, int64_t vocab) {
  const SourceSetup setup{
      tokenizer, vocab, seed, [&](const std::string& name) {
        if (name.empty() && data.empty()) {
          throw UsageError(
              fmt::format("{}: it has a source of text that names no \"data\"; pass --data", file.string()));
        }
        return TokenFile::open(name.empty() ? data : name);
      }};
  return std::make_shared<const Mixture>(read_file(file, kLargestMixture), file.string(), setup);
}

RunData::RunData(const TrainConfig& config, int64_t vocab, const Path& mixture) {
  const auto seed = static_cast<uint64_t>(config.seed);
  std::vector<MixturePhase> given =
      config.curriculum.empty() ? std::vector<MixturePhase>() : parse_curriculum(config.curriculum);
  if (!config.chat.empty() || !config.mixture.empty()) tokenizer_ = text_tokenizer(config, vocab);
  if (!config.mixture.empty()) {
    if (tokenizer_->vocab_size() > vocab) {
      throw UsageError(
          fmt::format("--mixture makes text of {} tokens, and the model knows {}; its --vocab-size is "
                      "too small",
                      tokenizer_->vocab_size(), vocab));
    }
    mixture_ = read_mixture(mixture, config.data, seed, *tokenizer_, vocab);
    if (!given.empty() && !mixture_->phases().empty())
      throw UsageError("--curriculum and the \"phases\" of --mixture say the same thing; leave one out");
    if (given.empty()) given = mixture_->phases();
  }
  phases_ = phases_of(config, given);
  const auto open = [&](const std::string& name, Order order,
                        int64_t context) -> std::unique_ptr<TrainingData> {
    if (!config.chat.empty()) return read_chat_data(name, *tokenizer_, {context, seed, vocab});
    return make_token_windows(TokenFile::open(name), {context, order, seed, vocab, config.document_resets});
  };
  for (const Phase& phase : phases_) {
    questions_.emplace_back();
    if (mixture_ == nullptr) {
      samples_.push_back(
          open(config.chat.empty() ? config.data : config.chat, order_named(config.order), phase.context));
      continue;
    }
    MixtureView view{phase.context, seed, vocab, &phase.from, {}};
    samples_.push_back(make_mixture_data(mixture_, view));
    if (!asks(*mixture_, phase.from)) continue;
    view.seed = ~seed;  // others than those that are trained on
    view.asking = ResetRule{};
    questions_.back().plain = make_mixture_data(mixture_, view);
    view.asking->questions = 1;
    questions_.back().reset = make_mixture_data(mixture_, view);
  }
  if (!config.held_out.empty()) held_out_ = open(config.held_out, Order::sequential, config.context);
}

RunData::~RunData() = default;

const TrainingData* RunData::questions(int64_t step, bool reset) const {
  const Questions& questions = questions_[phase_at(phases_, step)];
  return (reset ? questions.reset : questions.plain).get();
}

const std::string& RunData::source(int32_t index) const {
  RWKVX_ASSERT(mixture_ != nullptr);
  return mixture_->sources()[static_cast<size_t>(index)].name;
}

}  // namespace rwkvx
