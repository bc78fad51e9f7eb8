// The goldens and the published logits of a real checkpoint, on every backend. Measured distances are
// printed.
#include <fmt/format.h>

#include <iostream>

#include "model/noisy_ops.h"
#include "model/support.h"

namespace rwkvx {
namespace {

using test::Distance;
using test::distance;
using test::floats;
using test::Golden;

constexpr double kGoldenBound = 2e-4;     // of max |logit|, float32
constexpr double kPublishedBound = 1e-4;  // absolute: the published logits of the real checkpoint

struct Outputs {
  std::vector<float> logits;               // [B, T, V]
  std::vector<std::vector<float>> states;  // [B, H, N, N] for each RWKV-7 block
};

/// All sequences of a golden in one call.
Outputs compute(const Golden& golden, const Model& model) {
  const ModelConfig& c = model.config();
  const auto B = golden.tokens.size(), T = golden.tokens[0].size();
  std::vector<State> states;
  std::vector<SequenceInput> inputs;
  for (size_t b = 0; b < B; ++b) states.push_back(model.new_state());
  for (size_t b = 0; b < B; ++b) inputs.push_back({golden.tokens[b], &states[b]});
  Arena arena(model.ops().allocator());
  const View logits = arena.take(DType::f32, {static_cast<int64_t>(B * T), c.vocab});
  model.forward(inputs, LogitsOf::all, logits, arena);

  Outputs out;
  out.logits.resize(B * T * static_cast<size_t>(c.vocab));
  model.ops().download(logits.data(), std::as_writable_bytes(std::span(out.logits)));
  const auto per_sequence = static_cast<size_t>(c.channels * kHeadSize);
  for (int64_t i = 0; i < c.layers; ++i) {
    std::vector<float> state(B * per_sequence);
    for (size_t b = 0; b < B; ++b) {
      model.ops().download(states[b].wkv(i),
                           std::as_writable_bytes(std::span(state).subspan(b * per_sequence, per_sequence)));
    }
    out.states.push_back(std::move(state));
  }
  return out;
}

Outputs compute(const Golden& golden, std::shared_ptr<Ops> ops, const KvOptions& kv = {}) {
  return compute(golden, Model(open_checkpoint(golden.model, golden.options), std::move(ops), kv));
}

Outputs compute(const Golden& golden, const std::string& backend, Precision precision) {
  return compute(golden, make_ops({backend, precision, 2}));
}

/// The logits of positions below `positions` of every sequence.
std::vector<float> first_rows(const Golden& golden, std::span<const float> logits, int64_t positions) {
  const auto T = static_cast<size_t>(golden.logits.view().dim(1)),
             V = static_cast<size_t>(golden.logits.view().dim(2));
  std::vector<float> rows;
  for (size_t b = 0; b < golden.tokens.size(); ++b) {
    const auto part = logits.subspan(b * T * V, std::min(T, static_cast<size_t>(positions)) * V);
    rows.insert(rows.end(), part.begin(), part.end());
  }
  return rows;
}

void report(std::string_view what, const Distance& d) {
  std::cout << fmt::format("[ measured ] {}: max {:.3g}, rms {:.3g}\n", what, d.max, d.rms);
}

/// Parameters end with a backend; where that needs a GPU and there is none, tests skip.
class BackendTest : public testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  void SetUp() override {
    const std::string why = test::unavailable(std::get<1>(GetParam()));
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

class GoldenTest : public BackendTest {
 protected:
  const Golden golden_ = test::read_golden(std::get<0>(GetParam()));
  const std::string backend_ = std::get<1>(GetParam());
};

TEST_P(GoldenTest, Float32) {
  const Outputs got = compute(golden_, backend_, Precision::f32);
  const Distance d = distance(got.logits, floats(golden_.logits));
  report("logits", d);
  EXPECT_LE(d.max, kGoldenBound);
  for (size_t i = 0; i < golden_.states.size(); ++i) {
    const Distance s = distance(got.states[i], floats(golden_.states[i]));
    report(fmt::format("state {}", i), s);
    EXPECT_LE(s.max, kGoldenBound) << "block " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, GoldenTest,
                         testing::Combine(testing::Values("rwkv7", "rwkvx", "rwkvx-deep"),
                                          testing::Values("reference", "cpu", "cuda")),
                         [](const auto& test) {
                           std::string name =
                               std::string(std::get<0>(test.param)) + "_" + std::get<1>(test.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// docs/decisions/0007-bf16-bound.md derives the bounds: the error of bf16 precision is that of independent
// errors of the size of one rounding in every input of a product, as the exact model passes them on to the
// logits.
class BFloat16GoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(BFloat16GoldenTest, ErrorIsThatOfOneRoundingPerProduct) {
  const Golden golden = test::read_golden(GetParam());
  const std::vector<float> noisy = compute(golden, test::make_noisy_ops(1)).logits;
  const std::vector<float> reference = compute(golden, "reference", Precision::bf16).logits;
  const std::vector<float> cpu = compute(golden, "cpu", Precision::bf16).logits;
  const int64_t all = golden.logits.view().dim(1);
  // Up to here a query sees every chunk, so that no error can change what is selected.
  const int64_t unselected = std::min(all, *golden.options.chunk_size * *golden.options.top_k);
  const auto measure = [&](std::string_view what, std::span<const float> got, std::span<const float> expected,
                           int64_t positions) {
    const Distance d = distance(first_rows(golden, got, positions), first_rows(golden, expected, positions));
    report(fmt::format("{}, {} positions", what, positions), d);
    return d;
  };
  const auto expected = floats(golden.logits);
  const Distance noise_first = measure("noise", noisy, expected, unselected);
  const Distance noise_all = measure("noise", noisy, expected, all);
  ASSERT_GT(noise_first.rms, 0);
  std::vector<std::pair<std::string, const std::vector<float>*>> all_backends{{"reference", &reference},
                                                                              {"cpu", &cpu}};
  const std::vector<float> cuda = test::unavailable("cuda").empty()
                                      ? compute(golden, "cuda", Precision::bf16).logits
                                      : std::vector<float>();
  if (!cuda.empty()) all_backends.emplace_back("cuda", &cuda);
  for (const auto& [name, got] : all_backends) {
    const Distance first = measure(name, *got, expected, unselected);
    EXPECT_LE(first.rms, 2 * noise_first.rms) << name;
    EXPECT_LE(first.max, 4 * noise_first.max) << name;
    EXPECT_LE(measure(name, *got, expected, all).rms, 2 * noise_all.rms) << name;
  }
  const auto cpu_ops = make_ops({"cpu", Precision::bf16, 1});
  if (cpu_ops->active() == DType::f32) {
    // A processor without bf16 products rounds no inputs, only keys and values: it has to be closer to
    // float32.
    EXPECT_LE(measure("cpu", cpu, expected, unselected).rms, noise_first.rms);
    EXPECT_LE(measure("cpu", cpu, expected, all).rms, noise_all.rms);
    return;
  }
  double more_first = 0, more_all = 0;
  if (cpu_ops->rounds_recurrence(all)) {
    const auto recurrence = compute(golden, test::make_noisy_recurrence_ops(1)).logits;
    more_first = 2 * measure("noise in recurrences", recurrence, expected, unselected).rms;
    more_all = 2 * measure("noise in recurrences", recurrence, expected, all).rms;
  }
  EXPECT_LE(measure("cpu against reference", cpu, reference, unselected).rms, noise_first.rms + more_first);
  EXPECT_LE(measure("cpu against reference", cpu, reference, all).rms, noise_all.rms + more_all);
}

INSTANTIATE_TEST_SUITE_P(Goldens, BFloat16GoldenTest, testing::Values("rwkv7", "rwkvx", "rwkvx-deep"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

/// The goldens go past the chunks that every query sees.
class KvGoldenTest : public BackendTest {
 protected:
  std::vector<float> logits(const char* policy, std::optional<DType> dtype) const {
    KvOptions kv;
    parse_kv_policy(policy, kv);
    kv.dtype = dtype;
    return compute(golden_, make_ops({std::get<1>(GetParam()), Precision::f32, 2}), kv).logits;
  }
  const Golden golden_ = test::read_golden(std::get<0>(GetParam()));
};

TEST_P(KvGoldenTest, OnDisk) {
  ASSERT_GT(golden_.logits.view().dim(1), *golden_.options.chunk_size * *golden_.options.top_k);
  const Distance d = distance(logits("disk", {}), floats(golden_.logits));
  report("logits", d);
  EXPECT_LE(d.max, kGoldenBound);
}

/// As docs/decisions/0007-bf16-bound.md does for bf16.
TEST_P(KvGoldenTest, Int8ErrorIsThatOfOneRounding) {
  const std::vector<float> got = logits("full", DType::i8);
  const std::vector<float> noisy = compute(golden_, test::make_noisy_kv_ops(1)).logits;
  const int64_t unselected = *golden_.options.chunk_size * *golden_.options.top_k;
  for (const int64_t positions : {unselected, golden_.logits.view().dim(1)}) {
    const auto expected = first_rows(golden_, floats(golden_.logits), positions);
    const Distance error = distance(first_rows(golden_, got, positions), expected);
    const Distance noise = distance(first_rows(golden_, noisy, positions), expected);
    report(fmt::format("int8, {} positions", positions), error);
    report(fmt::format("noise, {} positions", positions), noise);
    EXPECT_LE(error.rms, 2 * noise.rms);
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, KvGoldenTest,
                         testing::Combine(testing::Values("rwkvx", "rwkvx-deep"),
                                          testing::Values("reference", "cpu", "cuda")),
                         [](const auto& test) {
                           std::string name =
                               std::string(std::get<0>(test.param)) + "_" + std::get<1>(test.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

class PublishedTest : public BackendTest {};

TEST_P(PublishedTest, LogitsOfARealCheckpoint) {
  const auto [file, backend] = GetParam();
  const Catalog published = open_catalog(test::data("rwkv7-tiny-834k/published.safetensors"));
  const ConstView ids = published.find("tokens")->data, expected = published.find("logits_last")->data;
  const std::vector<int32_t> tokens(ids.as<int64_t>(), ids.as<int64_t>() + ids.elements());
  const auto model =
      test::open_model(test::data(fmt::format("rwkv7-tiny-834k/{}", file)), backend, Precision::f32);
  State state = model->new_state();
  const std::vector<float> logits = test::run(*model, state, tokens);
  const std::span<const float> last = std::span(logits).last(static_cast<size_t>(expected.elements()));
  const std::span<const float> wanted(expected.as<float>(), last.size());
  const Distance d = distance(last, wanted);
  report("logits", d);
  ASSERT_TRUE(std::isfinite(d.max));
  for (size_t i = 0; i < last.size(); ++i) EXPECT_NEAR(last[i], wanted[i], kPublishedBound) << "token " << i;
}

INSTANTIATE_TEST_SUITE_P(Real, PublishedTest,
                         testing::Combine(testing::Values("model.pth", "model-f16.gguf"),
                                          testing::Values("reference", "cpu", "cuda")),
                         [](const auto& test) {
                           std::string name =
                               std::string(std::get<0>(test.param)) + "_" + std::get<1>(test.param);
                           for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace rwkvx
