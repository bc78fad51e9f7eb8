#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/random.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {

/// How the next token is drawn. Every value that changes nothing: temperature 1, top_p 1, top_k 0, min_p 0,
/// penalties 0, repetition_penalty 1.
struct SamplerOptions {
  float temperature = 1.0f;         ///< --temperature, >= 0; 0 takes the most likely token
  float top_p = 0.85f;              ///< --top-p, in (0, 1]
  int top_k = 0;                    ///< --top-k, 0: no limit
  float min_p = 0.0f;               ///< --min-p, in [0, 1]
  float presence_penalty = 0.0f;    ///< --presence-penalty
  float frequency_penalty = 0.0f;   ///< --frequency-penalty
  float penalty_decay = 0.996f;     ///< --penalty-decay, in [0, 1]
  float repetition_penalty = 1.0f;  ///< --repetition-penalty, > 0
  uint64_t seed = 0;                ///< --seed
};

/// Throws UsageError that names the flag whose value cannot be used.
void check_sampler_options(const SamplerOptions& options);

/// Draws tokens from logits, in this order:
///   1. repetition penalty r (CTRL, Keskar et al. 2019): the logit of every token seen is divided by r where
///   it is
///      positive and multiplied by r where it is negative;
///   2. presence and frequency penalty as in RWKV's demos: logit -= presence + count * frequency for every
///   token
///      seen, where each accepted token first multiplies all counts by penalty_decay and then adds 1 to its
///      own (so the presence penalty never fades);
///   3. p = softmax(logits). A token stays when it is among the top_k most likely, and p >= min_p * max p,
///   and the
///      more likely ones together have less than top_p. All three look at the same p, at temperature 1, as in
///      RWKV's demos. Of equal logits the lower id counts as more likely;
///   4. temperature t: a token is drawn with a probability proportional to p^(1/t).
/// The same options, logits and calls give the same tokens on every platform.
class Sampler {
 public:
  /// Errors: as check_sampler_options.
  explicit Sampler(const SamplerOptions& options);

  /// The next token. Does not accept it: a caller may draw and then decide. logits: [vocab]
  /// Errors: no logits, a NaN or +inf among them, all of them -inf, a seen token that is out of range.
  TokenId sample(std::span<const float> logits);

  /// Counts a token for the penalties. RWKV's demos accept what was generated and not the prompt.
  void accept(TokenId id);

  /// What changes from token to token (random numbers, counts; not the options) as one line of JSON.
  std::string save() const;
  /// Errors: not what save() writes; the sampler is then as it was.
  void load(std::string_view saved);

 private:
  struct Candidate {
    float logit;
    TokenId id;
  };
  void apply_penalties(std::span<const float> logits);
  void keep_likely(float max_logit);
  size_t draw(float max_logit);

  SamplerOptions options_;
  Random random_;
  std::vector<std::pair<TokenId, float>> seen_;  ///< accepted tokens by rising id, with their decayed counts

  // Reused from call to call.
  std::vector<float> logits_;   ///< with penalties; after keep_likely only those of ids_  [vocab]
  std::vector<TokenId> ids_;    ///< the tokens that keep_likely kept, rising
  std::vector<float> weights_;  ///< exp of logits_ below their maximum  [vocab]
  std::vector<double> sums_;    ///< of blocks of weights_
  std::vector<Candidate> candidates_;
};

}  // namespace rwkvx
