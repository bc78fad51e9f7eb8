#include "model/training_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "base/error.h"
#include "model/norm_backward.h"
#include "ops/training.h"
#include "tensor/convert.h"

namespace rwkvx {

struct TrainingModel::Pass {
  TrainingRows rows;
  std::span<const int32_t> tokens{}, targets{};
  std::span<const float> weights{};  // of the losses, with LongCE's; or empty
  std::span<const int64_t> earlier{};
  // One for each block, of which one is used; with a backward only.
  std::vector<RwkvTrainingBlock> rwkv{};
  std::vector<SparseTrainingBlock> sparse{};
};

namespace {

constexpr int64_t kLogits = int64_t{1} << 23;  // elements in memory at once, or more where there is room

/// Reads a real view into double.
std::vector<double> to_host(Ops& ops, ConstView view) {
  Buffer host(view.dtype(), view.shape());
  ops.download(view.data(), host.view().raw());
  std::vector<double> values(static_cast<size_t>(view.elements()));
  convert(host, View(values.data(), DType::f64, view.shape()));
  return values;
}

/// Some of the candidates, rising, each with probability samples · weight / Σ weights (at most 1): those that
/// the points of a grid with a random beginning fall upon.
std::vector<int64_t> sample_by_weight(std::span<const int64_t> candidates, std::span<const float> weights,
                                      const GateLossOptions& options) {
  double all = 0;
  for (const int64_t row : candidates) all += static_cast<double>(weights[static_cast<size_t>(row)]);
  std::vector<int64_t> sampled;
  const double step = all / static_cast<double>(options.samples);
  if (!(step > 0)) return sampled;
  std::mt19937_64 random(options.seed);
  double next = step * std::uniform_real_distribution<double>()(random);
  double passed = 0;
  for (const int64_t row : candidates) {
    passed += static_cast<double>(weights[static_cast<size_t>(row)]);
    if (passed <= next) continue;
    sampled.push_back(row);
    while (next < passed) next += step;
  }
  return sampled;
}

/// `count` of the rows that have an earlier chunk, rising; all when there are fewer.
std::vector<int64_t> sample_queries(const Batch& batch, std::span<const float> weights, int64_t chunk_size,
                                    const GateLossOptions& options) {
  std::vector<int64_t> candidates, sampled;
  for (size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
    for (int64_t t = batch.offsets[s] + chunk_size; t < batch.offsets[s + 1]; ++t) candidates.push_back(t);
  }
  if (options.by_weight && !weights.empty()) return sample_by_weight(candidates, weights, options);
  std::mt19937_64 random(options.seed);
  auto wanted = static_cast<size_t>(std::max<int64_t>(options.samples, 0));
  for (size_t i = 0; i < candidates.size() && wanted > 0; ++i) {  // selection sampling: in order
    if (random() % (candidates.size() - i) < wanted) {
      sampled.push_back(candidates[i]);
      --wanted;
    }
  }
  return sampled;
}

/// Mentions of what queries have to say, one query's behind another's.
struct MentionList {
  std::vector<int64_t> ends, rows;
  size_t queries = 0;  // that have some
};

/// All that are known, the last first.
MentionList mentions_of(std::span<const int64_t> queries, const Batch& batch,
                        std::span<const int64_t> earlier) {
  MentionList list;
  size_t sequence = 0;
  for (const int64_t query : queries) {
    while (batch.offsets[sequence + 1] <= query) ++sequence;
    const size_t before = list.rows.size();
    for (int64_t row = query; row >= batch.offsets[sequence];) {
      const int64_t mention = earlier[static_cast<size_t>(row)];
      if (mention < 0) break;
      list.rows.push_back(mention);
      row = mention - 1;  // whose target it is
    }
    list.queries += list.rows.size() > before ? 1 : 0;
    list.ends.push_back(static_cast<int64_t>(list.rows.size()));
  }
  return list;
}

}  // namespace

TrainingModel::TrainingModel(Parameters& parameters)
    : parameters_(parameters),
      order_(block_order(parameters.config())),
      arena_(parameters.ops().allocator()) {
  lowest_ = order_.size();
  for (const Parameters::Tensor& tensor : parameters.tensors()) {
    if (!tensor.gradient) continue;
    const std::string& name = tensor.spec.name;
    if (name.starts_with("emb.") || name.starts_with("blocks.0.ln0.")) {
      embedding_ = true;
      lowest_ = 0;
    }
    for (size_t i = 0; i < lowest_; ++i) {
      const std::string prefix =
          (order_[i].sparse ? "moba." : "blocks.") + std::to_string(order_[i].index) + ".";
      if (name.starts_with(prefix)) lowest_ = i;
    }
  }
}

void TrainingModel::check(const TrainingBatch& batch) const {
  const int64_t V = parameters_.config().vocab;
  const size_t rows = batch.tokens.size();
  RWKVX_ASSERT(batch.offsets.size() >= 2 && batch.offsets.back() == static_cast<int64_t>(rows));
  RWKVX_ASSERT(batch.targets.size() == rows);
  RWKVX_ASSERT(batch.weights.empty() || batch.weights.size() == rows);
  RWKVX_ASSERT(batch.resets.empty() || batch.resets.size() == rows);
  RWKVX_ASSERT(batch.earlier.empty() || batch.earlier.size() == rows);
  for (size_t i = 0; i < rows; ++i) {
    if (batch.tokens[i] < 0 || batch.tokens[i] >= V) {
      fail("token {} at row {} of the batch is outside the model's vocabulary of {}", batch.tokens[i], i, V);
    }
    if (batch.targets[i] < -1 || batch.targets[i] >= V) {
      fail("target {} at row {} of the batch is outside the model's vocabulary of {}", batch.targets[i], i,
           V);
    }
  }
}

TrainingModel::Pass TrainingModel::begin(const TrainingBatch& batch, int64_t slice_rows) {
  const Shape all{batch.offsets.back(), parameters_.config().channels};
  Pass pass{{ops(), arena_, parameters_.config(), {batch.offsets, batch.resets}, {}, {}, {}, {}}};
  pass.rows.slices = slices_of(batch.offsets, slice_rows);
  pass.rows.x = arena_.take(ops().real(), all);
  pass.rows.v_first = arena_.take(ops().real(), all);
  pass.tokens = batch.tokens;
  pass.targets = batch.targets;
  pass.earlier = batch.earlier;
  return pass;
}

/// `keeping`: of each block; empty: no backward follows.
void TrainingModel::run_blocks(Pass& pass, const std::vector<Keeping>& keeping) {
  const Weights& w = parameters_.weights();
  const View x = pass.rows.x;
  ops().embed(pass.tokens, w.embedding, x);
  ops().layer_norm(x, w.ln0.gain, w.ln0.bias, kNormEps, x);
  pass.rwkv.resize(keeping.size());
  pass.sparse.resize(keeping.size());
  for (size_t i = 0; i < order_.size(); ++i) {
    const auto at = static_cast<size_t>(order_[i].index);
    const bool first = order_[i].index == 0, kept = !keeping.empty() && i >= lowest_;
    if (order_[i].sparse && kept) {
      pass.sparse[i].forward(pass.rows, w.sparse[at], keeping[i]);
    } else if (order_[i].sparse) {
      sparse_forward(pass.rows, w.sparse[at]);
    } else if (kept) {
      pass.rwkv[i].forward(pass.rows, w.blocks[at], first, keeping[i]);
    } else {
      rwkv_forward(pass.rows, w.blocks[at], first);
    }
  }
}

RowScores TrainingModel::head(Pass& pass, ConstView normed, std::span<const float> weights, double divisor,
                              float l2wrap, View d) {
  const int64_t R = normed.dim(0), V = parameters_.config().vocab;
  const Matrix& w = parameters_.weights().head;
  const View dw = parameters_.gradients().head;
  const View losses = arena_.take(ops().real(), {R}), hits = arena_.take(ops().real(), {R});
  const int64_t most = std::max<int64_t>(kLogits, ops().pieces().bytes / 64);
  const int64_t slice = std::clamp<int64_t>(most / V, 1, R);
  const View memory = arena_.take(ops().real(), {slice, V});
  for (int64_t row = 0; row < R; row += slice) {
    const int64_t rows = std::min(slice, R - row);
    const auto first = static_cast<size_t>(row), count = static_cast<size_t>(rows);
    const View logits = memory.rows(0, rows);
    ops().linear({.x = normed.rows(row, rows), .w = &w, .y = logits});
    ops().training().cross_entropy({.logits = logits,
                                    .targets = pass.targets.subspan(first, count),
                                    .weights = weights.empty() ? weights : weights.subspan(first, count),
                                    .scale = static_cast<float>(1 / divisor),
                                    .l2wrap = l2wrap,
                                    .losses = losses.rows(row, rows),
                                    .dlogits = d ? logits : View(),
                                    .hits = hits.rows(row, rows)});
    if (!d) continue;
    ops().training().linear_backward(
        {.dy = logits, .x = normed.rows(row, rows), .w = &w, .dx = d.rows(row, rows), .dw = dw});
  }
  const std::vector<double> host_losses = to_host(ops(), losses), host_hits = to_host(ops(), hits);
  return {{host_losses.begin(), host_losses.end()}, {host_hits.begin(), host_hits.end()}};
}

RowScores TrainingModel::scores(const TrainingBatch& batch) {
  check(batch);
  const Arena::Scope scope(arena_);
  Pass pass = begin(batch, kSliceRows);
  run_blocks(pass, {});
  const View normed = arena_.take(ops().active(), pass.rows.x.shape());
  const NormWeights& ln_out = parameters_.weights().ln_out;
  ops().layer_norm(pass.rows.x, ln_out.gain, ln_out.bias, kNormEps, normed);
  return head(pass, normed, {}, 1, 0, {});
}

/// Truncated contexts run as batches of about as many rows as the batch itself has.
std::vector<float> TrainingModel::longce_weights(const TrainingBatch& batch, const LongCe& longce,
                                                 std::span<const float> full) {
  std::vector<float> weights(batch.tokens.size(), 1.0f);
  const std::vector<TruncatedContext> contexts = truncated_contexts(batch.offsets, longce);
  const auto most = static_cast<int64_t>(batch.tokens.size());
  for (size_t first = 0; first < contexts.size();) {
    std::vector<int32_t> tokens, targets;
    std::vector<uint8_t> resets;
    std::vector<int64_t> offsets{0};
    size_t next = first;
    for (; next < contexts.size(); ++next) {
      const TruncatedContext& context = contexts[next];
      if (next > first && offsets.back() + context.end - context.begin > most) break;
      const auto append = [&](auto& to, const auto& from) {
        if (!from.empty()) to.insert(to.end(), from.begin() + context.begin, from.begin() + context.end);
      };
      append(tokens, batch.tokens);
      append(targets, batch.targets);
      append(resets, batch.resets);
      offsets.push_back(offsets.back() + context.end - context.begin);
    }
    const std::vector<float> truncated =
        losses({.tokens = tokens, .targets = targets, .offsets = offsets, .resets = resets});
    for (size_t i = first; i < next; ++i) {
      const TruncatedContext& context = contexts[i];
      for (int64_t row = context.scored; row < context.end; ++row) {
        const float loss = truncated[static_cast<size_t>(offsets[i - first] + row - context.begin)];
        const float help = std::exp(loss - full[static_cast<size_t>(row)]);
        // Written so that NaN stays NaN and is found.
        weights[static_cast<size_t>(row)] = help > longce.gamma ? longce.gamma : help;
      }
    }
    first = next;
  }
  return weights;
}

void TrainingModel::blocks_backward(Pass& pass, const TrainingOptions& options, View d,
                                    TrainingResult& result) {
  const ModelConfig& c = parameters_.config();
  const bool teach = options.gate.weight > 0 || options.gate.pointing > 0;
  const std::vector<int64_t> queries =
      teach ? sample_queries(pass.rows.batch, pass.weights, c.chunk_size, options.gate)
            : std::vector<int64_t>();
  const MentionList mentions = options.gate.pointing > 0 && !pass.earlier.empty()
                                   ? mentions_of(queries, pass.rows.batch, pass.earlier)
                                   : MentionList();
  std::vector<AttentionTeaching> taught;
  for (size_t i = order_.size(); i-- > lowest_;) {
    const auto at = static_cast<size_t>(order_[i].index);
    AttentionTeaching teaching;
    if (order_[i].sparse && !queries.empty()) {
      teaching.rows = queries;
      if (!mentions.ends.empty()) teaching.mentions = Mentions{mentions.ends, mentions.rows};
      const auto loss = [&](float weight, size_t of) {
        const Shape shape{static_cast<int64_t>(queries.size()), c.heads()};
        return AttentionTeaching::Loss{weight / static_cast<float>(static_cast<int64_t>(of) * c.heads()),
                                       arena_.take(ops().real(), shape), arena_.take(ops().real(), shape)};
      };
      if (options.gate.weight > 0) teaching.gate = loss(options.gate.weight, queries.size());
      if (mentions.queries > 0) teaching.pointing = loss(options.gate.pointing, mentions.queries);
      taught.push_back(teaching);
    }
    if (order_[i].sparse) {
      pass.sparse[i].backward(pass.rows, parameters_.weights().sparse[at], parameters_.gradients().sparse[at],
                              teaching, d);
    } else {
      pass.rwkv[i].backward(pass.rows, parameters_.weights().blocks[at], parameters_.gradients().blocks[at],
                            d);
    }
  }
  const auto mean = [&](AttentionTeaching::Loss AttentionTeaching::*which, double& loss, double& hits) {
    int64_t judged = 0;
    double sum = 0;
    for (const AttentionTeaching& teaching : taught) {
      if (!((teaching.*which).scale > 0)) continue;
      const std::vector<double> losses = to_host(ops(), (teaching.*which).losses);
      const std::vector<double> found = to_host(ops(), (teaching.*which).hits);
      sum +=
          std::accumulate(losses.begin(), losses.end(), 0.0) * static_cast<double>((teaching.*which).scale);
      for (const double hit : found) {
        judged += hit >= 0 ? 1 : 0;
        hits += hit > 0 ? 1 : 0;
      }
    }
    loss = sum / static_cast<double>(std::max<size_t>(1, taught.size()));
    if (judged > 0) hits /= static_cast<double>(judged);
  };
  mean(&AttentionTeaching::gate, result.gate_loss, result.gate_hits);
  mean(&AttentionTeaching::pointing, result.pointing_loss, result.pointing_hits);
  if (options.gate.weight > 0) result.gate_loss /= static_cast<double>(options.gate.weight);
  if (options.gate.pointing > 0) result.pointing_loss /= static_cast<double>(options.gate.pointing);
}

TrainingResult TrainingModel::forward_backward(const TrainingBatch& batch, const TrainingOptions& options) {
  check(batch);
  const Arena::Scope scope(arena_);
  TrainingOps& training = ops().training();
  Pass pass = begin(batch, options.slice_rows);
  run_blocks(pass, choose_keeping(order_, lowest_, parameters_.config(), ops(), batch.offsets.back(),
                                  options.activation_bytes));
  const Shape rows = pass.rows.x.shape();
  const Weights& w = parameters_.weights();
  const Gradients& dw = parameters_.gradients();
  const View d = arena_.take(ops().real(), rows);
  TrainingResult result;
  std::vector<float> weights(batch.weights.begin(), batch.weights.end());
  {
    const Arena::Scope head_scope(arena_);
    const View normed = arena_.take(ops().active(), rows);
    ops().layer_norm(pass.rows.x, w.ln_out.gain, w.ln_out.bias, kNormEps, normed);
    if (options.longce) {
      const std::vector<float> full = head(pass, normed, {}, 1, 0, {}).losses;
      result.longce = longce_weights(batch, *options.longce, full);
      if (weights.empty()) weights.assign(full.size(), 1.0f);
      for (size_t i = 0; i < weights.size(); ++i) weights[i] *= result.longce[i];
    }
    pass.weights = weights;
    const double divisor = options.divisor > 0 ? options.divisor : static_cast<double>(rows[0]);
    const View d_normed = arena_.take(ops().real(), rows);
    RowScores scores = head(pass, normed, weights, divisor, options.l2wrap, d_normed);
    result.losses = std::move(scores.losses);
    result.hits = std::move(scores.hits);
    norm_backward(training, w.ln_out, dw.ln_out, pass.rows.x, d_normed, d, false);
    for (size_t i = 0; i < result.losses.size(); ++i) {
      if (batch.targets[i] < 0) continue;
      const auto loss = static_cast<double>(result.losses[i]);
      ++result.counted;
      result.cross_entropy += loss;
      result.loss += (weights.empty() ? 1 : static_cast<double>(weights[i])) * loss / divisor;
    }
    if (result.counted > 0) result.cross_entropy /= static_cast<double>(result.counted);
  }
  if (lowest_ == order_.size() && !embedding_) return result;

  pass.rows.dv_first = arena_.take(ops().real(), rows);
  training.zero(pass.rows.dv_first);
  blocks_backward(pass, options, d, result);
  if (!embedding_) return result;
  ops().embed(pass.tokens, w.embedding, pass.rows.x);
  norm_backward(training, w.ln0, dw.ln0, pass.rows.x, d, d, false);
  if (dw.embedding) training.embed_backward(pass.tokens, d, dw.embedding);
  return result;
}

}  // namespace rwkvx
