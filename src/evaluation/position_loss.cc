#include "evaluation/position_loss.h"

#include <bit>
#include <cmath>
#include <limits>
#include <numbers>

#include "base/assert.h"
#include "base/error.h"

namespace rwkvx {

size_t Buckets::of(int64_t position) const {
  if (width_ > 0) return static_cast<size_t>(position / width_);
  return static_cast<size_t>(std::bit_width(static_cast<uint64_t>(position / kFirst)));
}

int64_t Buckets::begin(size_t bucket) const {
  if (width_ > 0) return width_ * static_cast<int64_t>(bucket);
  return bucket == 0 ? 0 : kFirst << (bucket - 1);
}

double Buckets::middle(size_t bucket) const {
  const auto from = static_cast<double>(begin(bucket)), to = static_cast<double>(end(bucket));
  return doubling() && bucket > 0 ? std::sqrt(from * to) : (from + to) / 2;
}

DocumentLoss sum_by_position(std::string document, std::span<const TokenId> tokens,
                             std::span<const float> losses, bool begins, const Tokenizer& tokenizer,
                             const Buckets& buckets, PositionUnit unit) {
  RWKVX_ASSERT(losses.size() + 1 == tokens.size());
  DocumentLoss out;
  out.document = std::move(document);
  out.tokens = static_cast<int64_t>(tokens.size()) - (begins ? 1 : 0);
  int64_t position = 0;
  const auto width = [&](size_t i) { return static_cast<int64_t>(tokenizer.token_bytes(tokens[i]).size()); };
  if (!begins) position = unit == PositionUnit::bytes ? width(0) : 1;
  for (size_t i = 1; i < tokens.size(); ++i) {
    const size_t bucket = buckets.of(position);
    if (bucket >= out.buckets.size()) out.buckets.resize(bucket + 1);
    LossSums& sums = out.buckets[bucket];
    ++sums.tokens;
    sums.bytes += width(i);
    sums.nats += static_cast<double>(losses[i - 1]);
    position += unit == PositionUnit::bytes ? width(i) : 1;
  }
  return out;
}

nlohmann::ordered_json to_json(const DocumentLoss& loss) {
  nlohmann::ordered_json buckets = nlohmann::ordered_json::array();
  for (const LossSums& sums : loss.buckets) buckets.push_back({sums.tokens, sums.bytes, sums.nats});
  return {{"document", loss.document}, {"tokens", loss.tokens}, {"buckets", std::move(buckets)}};
}

DocumentLoss document_loss(const nlohmann::ordered_json& json, const std::string& where) {
  try {
    DocumentLoss out;
    out.document = json.at("document").get<std::string>();
    out.tokens = json.at("tokens").get<int64_t>();
    for (const auto& sums : json.at("buckets")) {
      out.buckets.push_back({sums.at(0).get<int64_t>(), sums.at(1).get<int64_t>(), sums.at(2).get<double>()});
    }
    return out;
  } catch (const nlohmann::json::exception&) {
    fail("{}: a line is not a result of `loss`: {}", where, printable(json.dump(-1, ' ', true)));
  }
}

Estimate ratio_estimate(std::span<const double> amounts, std::span<const double> weights) {
  double amount = 0, weight = 0;
  for (size_t i = 0; i < amounts.size(); ++i) {
    amount += amounts[i];
    weight += weights[i];
  }
  Estimate out{amount / weight, std::numeric_limits<double>::quiet_NaN()};
  if (amounts.size() < 2) return out;
  double squares = 0;
  for (size_t i = 0; i < amounts.size(); ++i) {
    const double rest = amounts[i] - out.mean * weights[i];
    squares += rest * rest;
  }
  const auto n = static_cast<double>(amounts.size());
  out.error = std::sqrt(n / (n - 1) * squares) / weight;
  return out;
}

namespace {

LossRow row_of(std::span<const LossSums> documents) {
  LossRow row;
  std::vector<double> nats, bits, tokens, bytes;
  for (const LossSums& d : documents) {
    if (d.tokens == 0) continue;
    ++row.documents;
    row.tokens += d.tokens;
    row.bytes += d.bytes;
    nats.push_back(d.nats);
    bits.push_back(d.nats / std::numbers::ln2);
    tokens.push_back(static_cast<double>(d.tokens));
    bytes.push_back(static_cast<double>(d.bytes));
  }
  row.loss = ratio_estimate(nats, tokens);
  row.perplexity.mean = std::exp(row.loss.mean);
  row.perplexity.error = row.perplexity.mean * row.loss.error;  // to first order
  row.bits_per_byte = ratio_estimate(bits, bytes);
  return row;
}

}  // namespace

ModelLoss summarise(std::string model, std::span<const DocumentLoss> documents, const Buckets& buckets) {
  ModelLoss out;
  out.model = std::move(model);
  size_t count = 0;
  std::vector<LossSums> all;
  for (const DocumentLoss& d : documents) {
    count = std::max(count, d.buckets.size());
    LossSums& sums = all.emplace_back();
    for (const LossSums& b : d.buckets) {
      sums.tokens += b.tokens;
      sums.bytes += b.bytes;
      sums.nats += b.nats;
    }
  }
  out.all = row_of(all);
  for (size_t i = 0; i < count; ++i) {
    std::vector<LossSums> here;
    for (const DocumentLoss& d : documents) {
      if (i < d.buckets.size()) here.push_back(d.buckets[i]);
    }
    LossRow row = row_of(here);
    row.begin = buckets.begin(i);
    row.end = buckets.end(i);
    if (row.tokens > 0) out.buckets.push_back(row);
  }
  for (const LossRow& row : out.buckets) out.all.end = row.end;
  return out;
}

}  // namespace rwkvx
