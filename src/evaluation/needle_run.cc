#include "evaluation/needle_run.h"

#include <algorithm>
#include <cctype>

#include "runtime/sampler.h"
#include "runtime/session.h"

namespace rwkvx {
namespace {

/// Tokens that may come beside the answer: a space, a colon, a quotation mark; "and" between several.
constexpr size_t kSlack = 8;

std::string_view from_first_word(std::string_view text) {
  const auto first = std::find_if(text.begin(), text.end(),
                                  [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; });
  return text.substr(static_cast<size_t>(first - text.begin()));
}

/// More tokens cannot change the score.
bool decided(std::string_view continuation, std::span<const std::string> answers) {
  if (answers.size() == 1) return from_first_word(continuation).size() >= answers[0].size();
  return score_answer(continuation, answers) == 1;
}

class NeedleRun {
 public:
  NeedleRun(const std::shared_ptr<const Model>& model, const Tokenizer& tokenizer, const NeedlePlan& plan,
            const Progress& progress, int64_t cost)
      : model_(model),
        tokenizer_(tokenizer),
        plan_(plan),
        progress_(progress),
        cost_(cost),
        sampler_(greedy()) {}

  void run(const std::vector<std::vector<size_t>>& groups,
           const std::function<void(const NeedleResult&)>& done) {
    Session trunk(model_);
    size_t current = plan_.trunks.size();
    int64_t at = 0;
    for (const auto& group : groups) {
      const NeedleSample& first = plan_.samples[group.front()];
      if (first.trunk != current) {
        trunk.reset();
        at = 0;
        current = first.trunk;
      }
      const std::span<const TokenId> tokens(plan_.trunks[current]);
      read(trunk, tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(first.insert_at - at)));
      at = first.insert_at;

      Session branch = trunk.fork();
      read(branch, first.needle);
      int64_t end = at;
      for (const size_t i : group) {
        const NeedleSample& sample = plan_.samples[i];
        read(branch, tokens.subspan(static_cast<size_t>(end), static_cast<size_t>(sample.end - end)));
        end = sample.end;
        Session asked = i == group.back() ? std::move(branch) : branch.fork();
        NeedleResult result{i, answer(asked, sample), 0};
        result.score = score_answer(result.predicted, sample.answers);
        done(result);
      }
    }
  }

 private:
  static SamplerOptions greedy() {
    SamplerOptions options;
    options.temperature = 0;
    return options;
  }

  Progress counted(int64_t tokens) {
    const int64_t before = done_;
    done_ += tokens;
    if (!progress_) return {};
    return [this, before, tokens](uint64_t done, uint64_t) {
      const int64_t now = before + std::min(static_cast<int64_t>(done), tokens);
      progress_(static_cast<uint64_t>(std::min(now, cost_)), static_cast<uint64_t>(cost_));
    };
  }

  void read(Session& session, std::span<const TokenId> tokens) {
    session.append(tokens);
    session.settle(counted(static_cast<int64_t>(tokens.size())));
  }

  std::string answer(Session& session, const NeedleSample& sample) {
    session.append(sample.question);
    size_t budget = kSlack;
    for (const std::string& a : sample.answers) budget += tokenizer_.encode(a).size() + kSlack;
    std::string text;
    Progress progress = counted(static_cast<int64_t>(sample.question.size()));
    for (size_t i = 0; i < budget && !decided(text, sample.answers); ++i) {
      const TokenId id = sampler_.sample(session.logits(progress));
      progress = {};
      if (id == tokenizer_.end_of_document()) break;
      if (id < tokenizer_.vocab_size()) text += tokenizer_.token_bytes(id);
      session.append(id);
    }
    return text;
  }

  const std::shared_ptr<const Model>& model_;
  const Tokenizer& tokenizer_;
  const NeedlePlan& plan_;
  const Progress& progress_;
  const int64_t cost_;
  int64_t done_ = 0;
  Sampler sampler_;
};

}  // namespace

double score_answer(std::string_view continuation, std::span<const std::string> answers) {
  if (answers.size() == 1) return from_first_word(continuation).starts_with(answers[0]) ? 1 : 0;
  const auto found = std::count_if(answers.begin(), answers.end(), [&](const std::string& answer) {
    return continuation.find(answer) != continuation.npos;
  });
  return static_cast<double>(found) / static_cast<double>(answers.size());
}

void run_needles(const std::shared_ptr<const Model>& model, const Tokenizer& tokenizer,
                 const NeedlePlan& plan, std::span<const size_t> samples,
                 const std::function<void(const NeedleResult&)>& done, const Progress& progress) {
  NeedleRun(model, tokenizer, plan, progress, needle_cost(plan, samples))
      .run(needle_order(plan, samples), done);
}

}  // namespace rwkvx
