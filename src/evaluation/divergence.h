#pragma once

#include <memory>
#include <span>

#include "base/progress.h"
#include "runtime/logits_stream.h"

namespace rwkvx {

/// How far the predictions of a model are from those of another that it came from, summed over the tokens of
/// texts. p is the source's distribution of a next token, q the other's.
struct DivergenceSums {
  int64_t tokens = 0;                ///< predicted
  double source_nats = 0, nats = 0;  ///< Σ −log p(token), Σ −log q(token)
  double kl = 0;                     ///< Σ KL(p‖q) = Σ p (log p − log q), nats
  int64_t same_top = 0;              ///< most probable token the same in p and q

  DivergenceSums& operator+=(const DivergenceSums& other);
};

/// Of one next token. Logits [V] of both; NaN where a logit is.
DivergenceSums divergence(std::span<const float> source, std::span<const float> other, int32_t token);

/// Both models read the same texts side by side, in bounded work space.
class Divergence {
 public:
  /// Errors: models of different vocabularies.
  Divergence(std::shared_ptr<const Model> source, std::shared_ptr<const Model> other);
  /// Over the tokens from the second on. `progress` counts tokens and may throw to stop. Errors: a token
  /// outside the vocabulary; logits that are not finite.
  DivergenceSums of(std::span<const int32_t> tokens, const Progress& progress = {});

 private:
  int64_t vocab_;
  LogitsStream source_, other_;
};

}  // namespace rwkvx
