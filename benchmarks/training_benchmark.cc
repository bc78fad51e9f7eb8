#include <array>
#include <vector>

#include "ops/training.h"
#include "ops_data.h"

/// The backward operations of the cpu backend, beside the forward that they belong to. GFLOP/s count the
/// arithmetic of the method (the states or scores computed again included).
namespace rwkvx {
namespace {

/// The forward keeps states, as in training.
void wkv7(benchmark::State& state, bool backward) {
  const int64_t tokens = state.range(0), heads = state.range(1), width = heads * kHeadSize;
  const auto ops = make_cpu(state.range(2));
  const Shape all{tokens, width};
  const Buffer r = filled(DType::f32, all), w = filled(DType::f32, all, 0.9), k = filled(DType::f32, all),
               v = filled(DType::f32, all), a = filled(DType::f32, all, 0.1),
               b = filled(DType::f32, all, 0.1);
  Buffer y(DType::f32, all), s = filled(DType::f32, {heads, kHeadSize, kHeadSize});
  const std::vector<int64_t> offsets{0, tokens};
  Buffer kept(DType::f32, {wkv7_intervals(offsets), heads, kHeadSize, kHeadSize});
  void* last = s.view().data();
  const Wkv7Call call{r, w, k, v, a, b, offsets, std::span(&last, 1), y, kept};
  ops->wkv7(call);
  std::vector<Buffer> gradients;
  for (int i = 0; i < 6; ++i) gradients.emplace_back(DType::f32, all);
  for (Buffer& buffer : gradients) ops->training().zero(buffer);
  const Wkv7Gradients g{r,           gradients[0], gradients[1], gradients[2], gradients[3], gradients[4],
                        gradients[5]};
  for (auto _ : state) {
    if (backward) {
      ops->training().wkv7_backward(call, g);
    } else {
      ops->wkv7(call);
    }
  }
  // For each element of the state 9 forward, 7 of them again, and 19 backward.
  rate(state, "GFLOP/s", (backward ? 26.0 : 9.0) * static_cast<double>(tokens * width * kHeadSize));
}
void wkv7_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "heads", "threads"})->ArgsProduct({{512}, {12}, {1, 0}});
}
BENCHMARK_CAPTURE(wkv7, forward, false)->Apply(wkv7_sizes);
BENCHMARK_CAPTURE(wkv7, backward, true)->Apply(wkv7_sizes);

/// Keys, values and all that the forward of chunk attention keeps, of one sequence.
struct Attention {
  std::unique_ptr<Ops> ops;
  int64_t tokens, chunk, top_k;
  static constexpr int64_t kHeads = 12;
  Shape all{tokens, kHeads* kHeadSize};
  Buffer q = filled(DType::f32, all), k = filled(DType::f32, all, 0.7), v = filled(DType::f32, all, 0.6);
  Buffer y{ops->active(), all}, lse{DType::f32, {tokens, kHeads}};
  Buffer chosen{DType::i32, {tokens, kHeads, top_k - 1}};
  std::array<Buffer, 3> gradients{Buffer(DType::f32, all), Buffer(DType::f32, all), Buffer(DType::f32, all)};
  std::vector<int64_t> offsets{0, tokens};
  std::vector<Buffer> pages;
  std::vector<void*> keys, values, sums;
  KvChunks kv;

  Attention(benchmark::State& state, DType dtype)
      : ops(make_cpu(state.range(3))), tokens(state.range(0)), chunk(state.range(1)), top_k(state.range(2)) {
    for (int64_t begin = 0; begin < tokens; begin += chunk) {
      for (auto* list : {&keys, &values}) {
        pages.emplace_back(dtype, Shape{kHeads, chunk, kHeadSize});
        list->push_back(pages.back().view().data());
      }
      pages.emplace_back(DType::f32, Shape{kHeads, kHeadSize});
      sums.push_back(pages.back().view().data());
    }
    kv.chunk_size = chunk;
    kv.length = tokens;
    kv.dtype = dtype;
    kv.keys = keys;
    kv.values = values;
    kv.key_sums = sums;
    ops->kv_append(k, v, offsets, std::span(&kv, 1));
    ops->chunk_attention(call());
  }
  ChunkAttention call() { return {q, offsets, std::span(&kv, 1), top_k, y, lse, chosen}; }
  /// Pairs of a query and a key that it sees.
  double seen() const {
    double pairs = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      pairs += static_cast<double>(t % chunk + 1 + std::min(t / chunk, top_k - 1) * chunk);
    }
    return pairs * kHeads;
  }
};

/// Two products of 64 for each pair forward; two again and three more backward.
void attention(benchmark::State& state, DType dtype, bool backward) {
  Attention data(state, dtype);
  auto& [dq, dk, dv] = data.gradients;
  for (auto _ : state) {
    if (backward) {
      data.ops->training().chunk_attention_backward(data.call(), {data.q, dq, dk, dv});
    } else {
      data.ops->chunk_attention(data.call());
    }
  }
  rate(state, "GFLOP/s", data.seen() * kHeadSize * (backward ? 10 : 4));
}
void attention_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "chunk", "top_k", "threads"})->Unit(benchmark::kMillisecond);
  for (const int64_t threads : {1, 0}) {
    b->Args({4096, 2048, 3, threads})->Args({4096, 256, 3, threads})->Args({4096, 64, 4, threads});
  }
}
BENCHMARK_CAPTURE(attention, forward_bf16, DType::bf16, false)->Apply(attention_sizes);
BENCHMARK_CAPTURE(attention, backward_f32, DType::f32, true)->Apply(attention_sizes);
BENCHMARK_CAPTURE(attention, backward_bf16, DType::bf16, true)->Apply(attention_sizes);

/// 256 sampled queries, evenly spaced.
struct Sampled {
  static constexpr int64_t kSamples = 256;
  std::vector<int64_t> rows;
  double pairs = 0;  // of a query and a key before it, in all heads
  Buffer losses{DType::f32, {kSamples, Attention::kHeads}}, hits{DType::f32, {kSamples, Attention::kHeads}};
  explicit Sampled(Attention& data) {
    for (int64_t i = 0; i < kSamples; ++i) {
      rows.push_back((2 * i + 1) * data.tokens / (2 * kSamples));
      pairs += static_cast<double>(rows.back() + 1) * Attention::kHeads;
    }
    for (Buffer& gradient : data.gradients) data.ops->training().zero(gradient);
  }
};

/// One product of 64 for each pair.
void gate_loss(benchmark::State& state) {
  Attention data(state, DType::bf16);
  Sampled sampled(data);
  for (auto _ : state) {
    data.ops->training().gate_loss(data.call(), {.rows = sampled.rows,
                                                 .scale = 1e-3f,
                                                 .losses = sampled.losses,
                                                 .hits = sampled.hits,
                                                 .dq = data.gradients[0],
                                                 .dk = data.gradients[1]});
  }
  rate(state, "GFLOP/s", sampled.pairs * kHeadSize * 2);
}
BENCHMARK(gate_loss)->Apply(attention_sizes);

/// Three products of 64 for each pair: scores, and gradients of queries and keys.
void pointing_loss(benchmark::State& state) {
  Attention data(state, DType::bf16);
  Sampled sampled(data);
  std::vector<int64_t> ends, mentions;
  for (const int64_t row : sampled.rows) {
    mentions.push_back(row / 2);
    ends.push_back(static_cast<int64_t>(mentions.size()));
  }
  for (auto _ : state) {
    data.ops->training().pointing_loss(data.call(), {.rows = sampled.rows,
                                                     .mentions = {ends, mentions},
                                                     .scale = 1e-3f,
                                                     .losses = sampled.losses,
                                                     .hits = sampled.hits,
                                                     .dq = data.gradients[0],
                                                     .dk = data.gradients[1]});
  }
  rate(state, "GFLOP/s", sampled.pairs * kHeadSize * 6);
}
BENCHMARK(pointing_loss)->Apply(attention_sizes);

/// dx and dw: two products of the forward's size.
void linear_backward(benchmark::State& state, Precision precision) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const auto ops = make_cpu(state.range(3), precision);
  const Buffer weight = filled(ops->active(), {out, in}), x = filled(ops->active(), {rows, in});
  const Buffer dy = filled(DType::f32, {rows, out});
  const Matrix matrix = ops->prepare(weight.view());
  Buffer dx(DType::f32, {rows, in}), dw(DType::f32, {out, in});
  ops->training().zero(dw);
  for (auto _ : state) ops->training().linear_backward({.dy = dy, .x = x, .w = &matrix, .dx = dx, .dw = dw});
  rate(state, "GFLOP/s", 4.0 * static_cast<double>(rows * in * out));
}
void linear_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "in", "out", "threads"})->Unit(benchmark::kMillisecond);
  for (const int64_t threads : {1, 0}) b->Args({2048, 768, 768, threads})->Args({2048, 768, 3072, threads});
}
BENCHMARK_CAPTURE(linear_backward, bf16, Precision::bf16)->Apply(linear_sizes);
BENCHMARK_CAPTURE(linear_backward, f32, Precision::f32)->Apply(linear_sizes);

/// GB/s count the logits once read and once written.
void cross_entropy(benchmark::State& state) {
  const int64_t rows = 256, vocabulary = state.range(0);
  const auto ops = make_cpu(state.range(1));
  const Buffer logits = filled(DType::f32, {rows, vocabulary}, 8);
  Buffer dlogits(DType::f32, {rows, vocabulary}), losses(DType::f32, {rows});
  const std::vector<int32_t> targets(rows, 7);
  for (auto _ : state) {
    ops->training().cross_entropy(
        {.logits = logits, .targets = targets, .l2wrap = 1e-4f, .losses = losses, .dlogits = dlogits});
  }
  rate(state, "GB/s", 8.0 * static_cast<double>(rows * vocabulary));
}
BENCHMARK(cross_entropy)->ArgNames({"V", "threads"})->ArgsProduct({{256, 65536}, {1, 0}});

/// GB/s count what is read and written: 4 arrays read, 3 and the bf16 weights written.
void adamw(benchmark::State& state) {
  const int64_t count = int64_t{1} << 23;
  const auto ops = make_cpu(state.range(0));
  std::array<Buffer, 4> real{filled(DType::f32, {count}), filled(DType::f32, {count}),
                             filled(DType::f32, {count}), filled(DType::f32, {count}, 0)};
  Buffer weight(DType::bf16, {count});
  const AdamWTensor tensor{real[0], real[1], real[2], real[3], weight, true};
  AdamWStep step{.rate = 1e-6};
  for (auto _ : state) {
    ops->training().adamw(std::span(&tensor, 1), step);
    ++step.step;
  }
  rate(state, "GB/s", 30.0 * static_cast<double>(count));
}
BENCHMARK(adamw)->ArgNames({"threads"})->Arg(1)->Arg(0);

}  // namespace
}  // namespace rwkvx

BENCHMARK_MAIN();
