// Losses, LongCE weights and every gradient, against numbers from PyTorch and against each other.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <iostream>

#include "base/error.h"
#include "model/support.h"
#include "model/tensor_file.h"
#include "model/training_model.h"
#include "ops/training.h"
#include "tensor/convert.h"

namespace rwkvx {
namespace {

using test::Distance;
using test::distance;

constexpr double kGradientBound = 1e-4;  // ‖got − expected‖ / ‖expected‖, float32

std::vector<float> host(ConstView view) {
  std::vector<float> values(static_cast<size_t>(view.elements()));
  convert(view, View(values.data(), DType::f32, view.shape()));
  return values;
}

/// A golden's training batch and numbers.
struct TrainingGolden {
  explicit TrainingGolden(const std::string& name)
      : golden(test::read_golden(name)),
        checkpoint(open_checkpoint(golden.model, golden.options)),
        file(open_catalog(test::data("goldens/" + name + "/expected.safetensors"))) {
    const ConstView ids = tensor("targets");
    for (const auto& sequence : golden.tokens) {
      tokens.insert(tokens.end(), sequence.begin(), sequence.end());
      offsets.push_back(static_cast<int64_t>(tokens.size()));
    }
    for (int64_t i = 0; i < ids.elements(); ++i)
      targets.push_back(static_cast<int32_t>(ids.as<int64_t>()[i]));
    longce = {number("longce_window"), number("longce_stride"),
              static_cast<float>(std::stod(*file.text("longce_gamma")))};
  }
  ConstView tensor(const std::string& key) const { return file.find(key)->data; }
  int64_t number(const char* key) const { return std::stoll(*file.text(key)); }
  TrainingBatch batch() const { return {.tokens = tokens, .targets = targets, .offsets = offsets}; }

  test::Golden golden;
  std::shared_ptr<const Checkpoint> checkpoint;
  Catalog file;
  std::vector<int32_t> tokens, targets;
  std::vector<int64_t> offsets{0};
  LongCe longce;
};

/// Compares with tensors `prefix` + name of the golden; returns how many there were.
int compare_gradients(const TrainingGolden& golden, const Parameters& parameters, Ops& ops,
                      const std::string& prefix) {
  int compared = 0;
  double worst = 0;
  std::string worst_name;
  for (const Parameters::Tensor& tensor : parameters.tensors()) {
    const CatalogTensor* expected =
        golden.file.find(prefix + golden.checkpoint->file_name_of(tensor.spec.name));
    if (expected == nullptr) continue;
    ++compared;
    std::vector<float> want = host(expected->data), got(want.size());
    ops.download(tensor.gradient.data(), std::as_writable_bytes(std::span(got)));
    if (tensor.spec.role == Role::low_rank) {
      std::vector<float> turned(got.size());
      transpose(ConstView(got.data(), DType::f32, tensor.spec.shape),
                View(turned.data(), DType::f32, {tensor.spec.shape[1], tensor.spec.shape[0]}));
      got = turned;
    }
    const double norm = distance(got, want).rms;
    EXPECT_LE(norm, kGradientBound) << prefix << tensor.spec.name;
    if (norm >= worst) worst_name = tensor.spec.name;
    worst = std::max(worst, norm);
  }
  std::cout << fmt::format("[ measured ] {} {}*: at most {:.3g} ({})\n", compared, prefix, worst, worst_name);
  return compared;
}

class GoldenGradientTest : public testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  const TrainingGolden golden_{std::get<0>(GetParam())};
  void SetUp() override {
    const std::string why = test::unavailable(std::get<1>(GetParam()));
    if (!why.empty()) GTEST_SKIP() << why;
    ops_ = make_ops({std::get<1>(GetParam()), Precision::f32, 2});
  }
  std::shared_ptr<Ops> ops_;
};

TEST_P(GoldenGradientTest, CrossEntropy) {
  Parameters parameters(golden_.checkpoint->config, *ops_);
  parameters.load(*golden_.checkpoint);
  TrainingModel model(parameters);
  const TrainingResult result = model.forward_backward(golden_.batch(), {});
  EXPECT_NEAR(result.loss, static_cast<double>(golden_.tensor("loss").as<float>()[0]), 1e-5);
  EXPECT_NEAR(result.loss, result.cross_entropy, 1e-9);
  EXPECT_EQ(result.counted, static_cast<int64_t>(golden_.tokens.size()));
  EXPECT_EQ(compare_gradients(golden_, parameters, *ops_, "grad."),
            static_cast<int>(parameters.tensors().size()));
}

TEST_P(GoldenGradientTest, LongCe) {
  Parameters parameters(golden_.checkpoint->config, *ops_);
  parameters.load(*golden_.checkpoint);
  TrainingModel model(parameters);
  TrainingOptions options;
  options.longce = golden_.longce;
  const TrainingResult result = model.forward_backward(golden_.batch(), options);
  const Distance weights = distance(result.longce, host(golden_.tensor("longce.weight")));
  EXPECT_LE(weights.rms, kGradientBound);
  EXPECT_LE(weights.max, 2e-4);
  std::cout << fmt::format("[ measured ] LongCE weights: max {:.3g}, rms {:.3g}\n", weights.max, weights.rms);
  EXPECT_NEAR(result.loss, static_cast<double>(golden_.tensor("longce.loss").as<float>()[0]), 1e-4);
  EXPECT_GE(compare_gradients(golden_, parameters, *ops_, "longce.grad."), 3);
}

INSTANTIATE_TEST_SUITE_P(Goldens, GoldenGradientTest,
                         testing::Combine(testing::Values("rwkv7", "rwkvx"),
                                          testing::Values("reference", "cpu", "cuda")),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param)) + "_" + std::get<1>(test.param);
                         });

/// All gradients, in order.
std::vector<float> gradients_of(const Parameters& parameters) {
  std::vector<float> all;
  for (const Parameters::Tensor& tensor : parameters.tensors()) {
    if (!tensor.gradient) continue;
    const std::vector<float> one = host(tensor.gradient);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

class TrainingModelTest : public testing::Test {
 protected:
  std::vector<float> gradients(const TrainingOptions& options, const Parameters::Choice& trainable = {}) {
    Parameters parameters(golden_.checkpoint->config, *ops_, trainable);
    parameters.load(*golden_.checkpoint);
    result_ = TrainingModel(parameters).forward_backward(golden_.batch(), options);
    return gradients_of(parameters);
  }

  const TrainingGolden golden_{"rwkvx"};
  const std::shared_ptr<Ops> ops_ = make_ops({"cpu", Precision::f32, 2});
  TrainingResult result_;
};

TEST_F(TrainingModelTest, RunningForwardAgainChangesNothing) {
  TrainingOptions options;
  const std::vector<float> kept = gradients(options);
  // From nothing but the blocks' inputs to all that they compute, one part of one block after another.
  for (uint64_t bytes = 0; bytes < uint64_t{4} << 20; bytes += uint64_t{40} << 10) {
    options.activation_bytes = bytes;
    EXPECT_TRUE(distance(gradients(options), kept).bitwise) << bytes;
  }
}

/// Other slices, other orders of the same sums: each is within 3e-6 of PyTorch's gradients in float32, tensor
/// by tensor (GoldenGradientTest), so both are within twice that of each other.
TEST_F(TrainingModelTest, SlicesChangeOnlyRoundings) {
  const std::vector<float> whole = gradients({});
  for (const int64_t rows : {32, 33, 64, 100}) {
    TrainingOptions options;
    options.slice_rows = rows;
    const std::vector<float> kept = gradients(options);
    EXPECT_LE(distance(kept, whole).rms, 6e-6) << rows;
    for (uint64_t bytes = 0; bytes < uint64_t{4} << 20; bytes += uint64_t{100} << 10) {
      options.activation_bytes = bytes;
      EXPECT_TRUE(distance(gradients(options), kept).bitwise) << rows << " " << bytes;
    }
  }
}

TEST(KeepingTest, TakesTheMostValuablePartsThatFit) {
  const auto ops = make_ops({"cpu", Precision::f32, 1});
  ModelConfig config;
  config.layers = 2;
  config.sparse_blocks = 1;
  config.channels = 64;
  config.ffn = 256;
  config.decay_rank = config.rate_rank = config.value_rank = config.gate_rank = 32;
  const std::vector<BlockRef> order = block_order(config);
  const auto chosen = [&](uint64_t bytes) { return choose_keeping(order, 0, config, *ops, 100, bytes); };
  EXPECT_EQ(chosen(0), std::vector<Keeping>(3));
  // Attention is what costs most to compute again.
  const std::vector<Keeping> little = chosen(uint64_t{120} << 10);
  for (size_t i = 0; i < order.size(); ++i) EXPECT_EQ(little[i].mixing, order[i].sparse) << i;
  for (const Keeping& all : chosen(UINT64_MAX)) EXPECT_TRUE(all.mixing && all.second_half && all.rest);
}

TEST(SlicesTest, CutSequencesBetweenIntervals) {
  const std::vector<int64_t> offsets{0, 40, 41, 300, 310};
  for (const int64_t rows : {32, 50, 64, 1000}) {
    int64_t row = 0, intervals = 0;
    for (const Slice& slice : slices_of(offsets, rows)) {
      EXPECT_EQ(slice.begin, row);
      EXPECT_GT(slice.rows(), 0);
      EXPECT_LE(slice.rows(), rows);
      EXPECT_EQ(slice.offsets.front(), 0);
      EXPECT_EQ(slice.offsets.back(), slice.rows());
      EXPECT_EQ(slice.first_interval, intervals);
      for (size_t s = 0; s < slice.sequences(); ++s) {
        const int64_t first = slice.begin + slice.offsets[s], last = slice.begin + slice.offsets[s + 1],
                      start = offsets[slice.first_sequence + s], end = offsets[slice.first_sequence + s + 1];
        EXPECT_LT(first, last);
        EXPECT_LE(start, first);
        EXPECT_LE(last, end);
        EXPECT_EQ((first - start) % kWkv7Interval, 0);
        EXPECT_EQ(first > start, s == 0 && slice.begins_within);
        EXPECT_EQ(last < end, s + 1 == slice.sequences() && slice.ends_within);
      }
      intervals += wkv7_intervals(slice.offsets);
      row = slice.end;
    }
    EXPECT_EQ(row, offsets.back());
    EXPECT_EQ(intervals, wkv7_intervals(offsets));
  }
}

TEST_F(TrainingModelTest, FrozenTensorsHaveNoGradientAndTheOthersTheSame) {
  for (const char* part : {"moba.", "head.", "blocks.1.", "att.w", "emb."}) {
    const Parameters::Choice chosen = [&](const TensorSpec& spec) {
      return spec.name.find(part) != std::string::npos;
    };
    Parameters all(golden_.checkpoint->config, *ops_), some(golden_.checkpoint->config, *ops_, chosen);
    for (Parameters* parameters : {&all, &some}) {
      parameters->load(*golden_.checkpoint);
      TrainingModel(*parameters).forward_backward(golden_.batch(), {});
    }
    int compared = 0;
    for (const Parameters::Tensor& tensor : all.tensors()) {
      const View gradient = some.find(tensor.spec.name)->gradient;
      ASSERT_EQ(static_cast<bool>(gradient), chosen(tensor.spec)) << tensor.spec.name;
      if (!gradient) continue;
      ++compared;
      EXPECT_LE(distance(host(gradient), host(tensor.gradient)).rms, 1e-6) << tensor.spec.name;
    }
    EXPECT_GT(compared, 0) << part;
  }
}

TEST_F(TrainingModelTest, SequencesAddUp) {
  const std::vector<float> together = gradients({});
  Parameters parameters(golden_.checkpoint->config, *ops_);
  parameters.load(*golden_.checkpoint);
  TrainingModel model(parameters);
  TrainingOptions options;
  options.divisor = static_cast<double>(golden_.tokens.size());
  double loss = 0;
  for (size_t s = 0; s + 1 < golden_.offsets.size(); ++s) {
    const auto first = static_cast<size_t>(golden_.offsets[s]),
               count = static_cast<size_t>(golden_.offsets[s + 1]) - first;
    const std::vector<int64_t> offsets{0, static_cast<int64_t>(count)};
    loss += model
                .forward_backward({.tokens = std::span(golden_.tokens).subspan(first, count),
                                   .targets = std::span(golden_.targets).subspan(first, count),
                                   .offsets = offsets},
                                  options)
                .loss;
  }
  EXPECT_NEAR(loss, result_.loss, 1e-6);
  // Other numbers of rows are other orders of summation: √512 · 2⁻²⁴ = 1.35e-6 for each of a dozen products
  // on the way, whose errors add in squares.
  EXPECT_LE(distance(gradients_of(parameters), together).rms, 5e-6);
}

/// The gate's gradient is λ times something, and is the only one that changes at its own block.
TEST_F(TrainingModelTest, GateLossIsAddedToTheSparseBlocks) {
  const auto last_sparse = [](const TensorSpec& spec) {
    return spec.name == "moba.0.att.receptance.weight" || spec.name == "moba.0.att.key.weight";
  };
  TrainingOptions options;
  options.gate.samples = 40;
  std::vector<std::vector<float>> at;
  for (const float weight : {0.0f, 0.5f, 1.0f}) {
    options.gate.weight = weight;
    at.push_back(gradients(options, last_sparse));
    if (weight > 0) {
      EXPECT_GT(result_.gate_loss, 0);
    } else {
      EXPECT_EQ(result_.gate_loss, 0);
    }
    EXPECT_GE(result_.gate_hits, 0);
    EXPECT_LE(result_.gate_hits, 1);
  }
  std::vector<float> half, whole;
  for (size_t i = 0; i < at[0].size(); ++i) {
    half.push_back(2 * (at[1][i] - at[0][i]));
    whole.push_back(at[2][i] - at[0][i]);
  }
  EXPECT_LE(distance(half, whole).rms, 1e-4);
  EXPECT_GT(distance(at[2], at[0]).rms, 1e-3);
}

/// Targets that are said to have been said before move queries and keys, in proportion to the factor, and
/// nothing but those rows counts.
TEST_F(TrainingModelTest, PointingLossIsOfRowsWithMentions) {
  const auto last_sparse = [](const TensorSpec& spec) {
    return spec.name == "moba.0.att.receptance.weight" || spec.name == "moba.0.att.key.weight";
  };
  Parameters parameters(golden_.checkpoint->config, *ops_, last_sparse);
  parameters.load(*golden_.checkpoint);
  TrainingModel model(parameters);
  const size_t rows = golden_.tokens.size();
  std::vector<int64_t> earlier(rows, -1);
  const auto run = [&](float factor, bool known) {
    TrainingOptions options;
    options.gate.pointing = factor;
    options.gate.samples = static_cast<int64_t>(rows);
    TrainingBatch batch = golden_.batch();
    if (known) batch.earlier = earlier;
    parameters.zero_gradients();
    const TrainingResult result = model.forward_backward(batch, options);
    return std::pair(result, gradients_of(parameters));
  };
  const auto none = run(1, true), off = run(0, true);
  EXPECT_EQ(none.second, off.second) << "no mention is known";
  EXPECT_EQ(none.first.pointing_loss, 0);
  // The last row's target was said by the third row of its sequence, and before that by the first.
  const int64_t first = golden_.offsets[golden_.offsets.size() - 2];
  const auto before = static_cast<size_t>(first) + 1;
  ASSERT_GT(rows, before + 2);
  earlier[rows - 1] = first + 2;
  earlier[before] = first;
  EXPECT_EQ(run(1, false).second, off.second) << "they are not given";
  const auto one = run(1, true), two = run(2, true);
  EXPECT_GT(one.first.pointing_loss, 0);
  EXPECT_NEAR(one.first.pointing_loss, two.first.pointing_loss, 1e-5);
  std::vector<float> once, twice;
  for (size_t i = 0; i < off.second.size(); ++i) {
    once.push_back(2 * (one.second[i] - off.second[i]));
    twice.push_back(two.second[i] - off.second[i]);
  }
  EXPECT_LE(distance(once, twice).rms, 1e-4);
  EXPECT_GT(distance(one.second, off.second).rms, 1e-3);
  const double both = one.first.pointing_loss;
  earlier[before] = -1;
  EXPECT_GT(run(1, true).first.pointing_loss, both) << "a mention fewer holds less of the attention";
}

/// Sampled by weight, rows without one teach nothing: as if the others were the batch's only candidates.
TEST_F(TrainingModelTest, GateIsTaughtByTheRowsThatCount) {
  const auto last_sparse = [](const TensorSpec& spec) {
    return spec.name == "moba.0.att.receptance.weight" || spec.name == "moba.0.att.key.weight";
  };
  TrainingOptions options;
  options.gate = {1.0f, 1, 3, true};
  Parameters parameters(golden_.checkpoint->config, *ops_, last_sparse);
  parameters.load(*golden_.checkpoint);
  TrainingModel model(parameters);
  const size_t rows = golden_.tokens.size();
  const auto gate_loss_of = [&](size_t row) {
    std::vector<float> weights(rows, 0.0f);
    weights[row] = 1;
    TrainingBatch batch = golden_.batch();
    batch.weights = weights;
    parameters.zero_gradients();
    return model.forward_backward(batch, options).gate_loss;
  };
  const double first = gate_loss_of(rows - 2), second = gate_loss_of(rows - 9);
  EXPECT_GT(std::abs(first - second), 1e-4) << "other rows are sampled";
  options.gate.seed = 77;
  EXPECT_EQ(gate_loss_of(rows - 2), first) << "nothing else can be drawn";
  options.gate.by_weight = false;
  EXPECT_NE(gate_loss_of(rows - 2), first);
}

TEST_F(TrainingModelTest, WrongTokensAreNamed) {
  Parameters parameters(golden_.checkpoint->config, *ops_);
  TrainingModel model(parameters);
  std::vector<int32_t> tokens = golden_.tokens;
  tokens[7] = 160;
  TrainingBatch batch = golden_.batch();
  batch.tokens = tokens;
  EXPECT_THAT([&] { model.losses(batch); }, testing::ThrowsMessage<Error>(testing::AllOf(
                                                testing::HasSubstr("160"), testing::HasSubstr("row 7"))));
}

/// Weighted losses, rows without a target, and state resets, in float64 against difference quotients.
TEST(TrainingModelDifferences, MasksWeightsAndResets) {
  const test::TemporaryFolder folder;
  test::small_model(2, 1).write(folder / "model.safetensors");
  const auto checkpoint = open_checkpoint(folder / "model.safetensors", {4, 2});
  const std::shared_ptr<Ops> ops = make_ops({"reference", Precision::f64, 1});
  Parameters parameters(checkpoint->config, *ops);
  parameters.load(*checkpoint);
  TrainingModel model(parameters);
  constexpr size_t kRows = 11;
  const std::vector<int32_t> tokens = test::random_tokens(kRows, 256, 1);
  std::vector<int32_t> targets = test::random_tokens(kRows, 256, 2);
  targets[2] = -1;
  std::vector<float> weights(kRows, 1.0f);
  weights[5] = 3;
  weights[9] = 0.25f;
  std::vector<uint8_t> resets(kRows, 0);
  resets[4] = resets[8] = 1;
  const std::vector<int64_t> offsets{0, 2, kRows};
  const TrainingBatch batch{tokens, targets, offsets, weights, resets};
  TrainingOptions options;
  options.l2wrap = 0;
  model.forward_backward(batch, options);

  // Resets matter: the loss is another one without it.
  TrainingBatch without = batch;
  without.resets = {};
  EXPECT_GT(distance(model.losses(without), model.losses(batch)).max, 1e-4);

  const auto loss = [&] {
    const std::vector<float> losses = model.losses(batch);
    double sum = 0;
    for (size_t i = 0; i < kRows; ++i)
      sum += static_cast<double>(weights[i]) * static_cast<double>(losses[i]);
    return sum / kRows;
  };
  for (const char* name : {"blocks.0.att.w2", "blocks.1.att.k_k", "blocks.1.att.x_w", "moba.0.att.key.weight",
                           "blocks.0.ln0.weight", "blocks.1.att.a0", "ln_out.bias"}) {
    const Parameters::Tensor* tensor = parameters.find(name);
    ASSERT_NE(tensor, nullptr) << name;
    double* x = tensor->master.as<double>();
    const double* gradient = tensor->gradient.as<double>();
    const int64_t largest = std::max_element(gradient, gradient + tensor->gradient.elements(),
                                             [](double a, double b) { return std::abs(a) < std::abs(b); }) -
                            gradient;
    // Losses come in float32: a step that moves the loss by 1e-3 tells the gradient to a part in 10³.
    const double before = x[largest], step = std::min(1e-3 / std::abs(gradient[largest]), 0.01);
    double sides[2];
    for (const int side : {0, 1}) {
      x[largest] = before + (side == 0 ? -step : step);
      sides[side] = loss();
    }
    x[largest] = before;
    EXPECT_NEAR((sides[1] - sides[0]) / (2 * step), gradient[largest], 0.01 * std::abs(gradient[largest]))
        << name;
  }
}

/// All that a mixture uses at once: weights, resets, rows without target, LongCE, L2Wrap, selection loss. The
/// cpu backend in float32 against the reference in float64.
TEST(TrainingModelBackends, WeightsResetsLongCeAndGate) {
  const test::TemporaryFolder folder;
  test::small_model(2, 1).write(folder / "model.safetensors");
  const auto checkpoint = open_checkpoint(folder / "model.safetensors", {4, 2});
  constexpr size_t kRows = 45;
  const std::vector<int32_t> tokens = test::random_tokens(kRows, 256, 1);
  std::vector<int32_t> targets = test::random_tokens(kRows, 256, 2);
  std::vector<float> weights(kRows);
  std::vector<uint8_t> resets(kRows, 0);
  for (size_t i = 0; i < kRows; ++i) {
    weights[i] = i % 3 == 0 ? 1.0f : 0.1f;
    resets[i] = i % 7 == 3;
    if (i % 5 == 2) targets[i] = -1;
  }
  const std::vector<int64_t> offsets{0, 12, kRows};
  TrainingOptions options;
  options.divisor = 13.5;
  options.l2wrap = 0.01f;
  options.longce = LongCe{10, 4, 2};
  options.gate = {0.3f, 16, 5};
  std::vector<std::vector<float>> gradients[2];
  TrainingResult results[2];
  for (const int side : {0, 1}) {
    const std::shared_ptr<Ops> ops =
        side == 0 ? make_ops({"reference", Precision::f64, 1}) : make_ops({"cpu", Precision::f32, 2});
    Parameters parameters(checkpoint->config, *ops);
    parameters.load(*checkpoint);
    TrainingModel model(parameters);
    results[side] = model.forward_backward({tokens, targets, offsets, weights, resets}, options);
    for (const Parameters::Tensor& tensor : parameters.tensors())
      gradients[side].push_back(host(tensor.gradient));
  }
  EXPECT_NEAR(results[1].loss / results[0].loss, 1, 1e-5);
  EXPECT_EQ(results[1].hits, results[0].hits);
  for (size_t i = 0; i < kRows; ++i) {
    if (targets[i] < 0) {
      EXPECT_EQ(results[1].hits[i], 0);
    }
  }
  for (size_t i = 0; i < gradients[0].size(); ++i)
    EXPECT_LE(distance(gradients[1][i], gradients[0][i]).rms, kGradientBound) << i;
}

/// Which targets are the likeliest, from the forward pass of training and from the one without.
TEST_F(TrainingModelTest, HitsAreTheLikeliestTokens) {
  Parameters parameters(golden_.checkpoint->config, *ops_);
  parameters.load(*golden_.checkpoint);
  TrainingModel model(parameters);
  // Each token as the target of each row: one hit in each row.
  std::vector<int> hits(golden_.tokens.size(), 0);
  for (int32_t token = 0; token < golden_.checkpoint->config.vocab; ++token) {
    const std::vector<int32_t> targets(golden_.tokens.size(), token);
    TrainingBatch batch = golden_.batch();
    batch.targets = targets;
    const RowScores scores = model.scores(batch);
    for (size_t i = 0; i < hits.size(); ++i) hits[i] += scores.hits[i];
    if (token == 7) {
      EXPECT_EQ(model.forward_backward(batch, {}).hits, scores.hits);
    }
  }
  EXPECT_EQ(hits, std::vector<int>(hits.size(), 1));
}

/// Some steps of AdamW learn a batch by heart, in both precisions alike.
TEST(TrainingModelSteps, LossFalls) {
  const TrainingGolden golden("rwkvx");
  std::vector<double> last;
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    const std::shared_ptr<Ops> ops = make_ops({"cpu", precision, 2});
    Parameters parameters(golden.checkpoint->config, *ops);
    parameters.load(*golden.checkpoint);
    std::vector<Buffer> moments;
    std::vector<AdamWTensor> tensors;
    for (const Parameters::Tensor& tensor : parameters.tensors()) {
      for (int i = 0; i < 2; ++i) moments.emplace_back(ops->real(), tensor.spec.shape, ops->allocator());
      tensors.push_back({tensor.master, tensor.gradient, moments[moments.size() - 2].view(),
                         moments.back().view(), tensor.weight});
    }
    TrainingModel model(parameters);
    std::vector<double> losses;
    for (int64_t step = 1; step <= 6; ++step) {
      parameters.zero_gradients();
      losses.push_back(model.forward_backward(golden.batch(), {}).loss);
      ops->training().adamw(tensors, {.step = step, .rate = 2e-3});
    }
    EXPECT_LT(losses.back(), 0.8 * losses.front()) << name(precision);
    last.push_back(losses.back());
  }
  EXPECT_NEAR(last[1], last[0], 0.02 * last[0]);
}

}  // namespace
}  // namespace rwkvx
