#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "evaluation/documents.h"
#include "runtime/token_losses.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {

/// Positions in a document, put together: [0, 64), [64, 128), [128, 256), … or all of one width.
class Buckets {
 public:
  /// width 0: doubling.
  explicit Buckets(int64_t width = 0) : width_(width) {}
  size_t of(int64_t position) const;
  int64_t begin(size_t bucket) const;
  int64_t end(size_t bucket) const { return begin(bucket + 1); }
  /// Where a bucket stands on an axis: the middle, in proportion where they double.
  double middle(size_t bucket) const;
  bool doubling() const { return width_ == 0; }

 private:
  static constexpr int64_t kFirst = 64;
  int64_t width_;
};

/// What positions count.
enum class PositionUnit { tokens, bytes };

/// Of one document and bucket.
struct LossSums {
  int64_t tokens = 0, bytes = 0;
  double nats = 0;
};

/// A model's losses on one document.
struct DocumentLoss {
  std::string document;
  int64_t tokens = 0;  ///< of the document, predicted or not
  std::vector<LossSums> buckets;
};

/// Sums losses by position. losses[i] belongs to tokens[i + 1]; `begins` is whether tokens[0] is the end of a
/// document put before the first token, which position 0 then counts from.
DocumentLoss sum_by_position(std::string document, std::span<const TokenId> tokens,
                             std::span<const float> losses, bool begins, const Tokenizer& tokenizer,
                             const Buckets& buckets, PositionUnit unit);

nlohmann::ordered_json to_json(const DocumentLoss& loss);
/// Errors: not what to_json() makes.
DocumentLoss document_loss(const nlohmann::ordered_json& json, const std::string& where);

/// A mean over documents, with its standard error; NaN where it is not known (from one document alone).
struct Estimate {
  double mean = 0, error = 0;
};

/// Σ amounts / Σ weights as the mean of documents of different sizes, and the standard error of this ratio
/// (Cochran 1977, "Sampling Techniques", eq. 6.13, without the finite population's correction):
/// sqrt(D / (D - 1) · Σ (aᵢ - r wᵢ)²) / Σ wᵢ.
Estimate ratio_estimate(std::span<const double> amounts, std::span<const double> weights);

/// One row of the result.
struct LossRow {
  int64_t begin = 0, end = 0;  ///< positions
  int64_t documents = 0, tokens = 0, bytes = 0;
  Estimate loss;        ///< nats per token
  Estimate perplexity;  ///< exp(loss)
  Estimate bits_per_byte;
};

struct ModelLoss {
  std::string model;
  LossRow all;
  std::vector<LossRow> buckets;  ///< those with tokens
};
ModelLoss summarise(std::string model, std::span<const DocumentLoss> documents, const Buckets& buckets);

}  // namespace rwkvx
