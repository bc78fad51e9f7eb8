#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "ops_data.h"

/// The operations of the cpu backend, with what bounds each as a counter: GB/s of weights read, or GFLOP/s.
/// Arguments come with their names; `threads` 0 is one for each core. Rates are by the wall clock; on a busy
/// machine compare the CPU column of one thread.
namespace rwkvx {
namespace {

/// Matrices are many enough not to stay in the cache between their uses, as in a model.
void products(benchmark::State& state, Ops& ops, DType weight, ConstView x, int64_t out,
              bool sparse_input = false) {
  const int64_t rows = x.dim(0), in = x.dim(1);
  const auto bytes = static_cast<int64_t>(bytes_of(weight, in * out));
  const int64_t count = rows > 64 ? 1 : std::max<int64_t>(1, (int64_t{192} << 20) / bytes);
  std::vector<Buffer> weights;
  std::vector<Matrix> matrices;
  for (int64_t i = 0; i < count; ++i) weights.push_back(filled(weight, {out, in}));
  for (const Buffer& one : weights) matrices.push_back(ops.prepare(one.view(), sparse_input));
  Buffer y(DType::f32, {rows, out});
  size_t next = 0;
  for (auto _ : state) {
    ops.linear({.x = x, .w = &matrices[next++ % matrices.size()], .y = y});
  }
  rate(state, "GB/s", static_cast<double>(bytes));
  rate(state, "GFLOP/s", 2.0 * static_cast<double>(rows * in * out));
}

void linear(benchmark::State& state, DType weight, Precision precision) {
  const auto ops = make_cpu(state.range(3), precision);
  const Buffer x = filled(ops->active(), {state.range(0), state.range(1)});
  products(state, *ops, weight, x, state.range(2));
}

void linear_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "in", "out", "threads"});
  for (const int64_t rows : {1, 4, 8, 16, 32, 64, 512}) {
    for (const int64_t threads : {1, 0}) {
      b->Args({rows, 768, 768, threads})->Args({rows, 768, 3072, threads})->Args({rows, 3072, 768, threads});
      b->Args({rows, 768, 65536, threads});
    }
  }
}
BENCHMARK_CAPTURE(linear, bf16, DType::bf16, Precision::bf16)->Apply(linear_sizes);
BENCHMARK_CAPTURE(linear, f16_in_bf16, DType::f16, Precision::bf16)->Apply(linear_sizes);
BENCHMARK_CAPTURE(linear, f32, DType::f32, Precision::f32)->Apply(linear_sizes);

/// Decoding; GB/s are of the file's bytes. Compare tokens/s of formats, or GB/s with bf16's.
void few_rows(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "in", "out", "threads"});
  for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64, 128, 512}) {
    for (const int64_t threads : {1, 0})
      b->Args({rows, 768, 3072, threads})->Args({rows, 2048, 2048, threads});
  }
}
BENCHMARK_CAPTURE(linear, decode_bf16, DType::bf16, Precision::bf16)->Apply(few_rows);
BENCHMARK_CAPTURE(linear, decode_q8_0, DType::q8_0, Precision::bf16)->Apply(few_rows);
BENCHMARK_CAPTURE(linear, decode_q6_k, DType::q6_k, Precision::bf16)->Apply(few_rows);
BENCHMARK_CAPTURE(linear, decode_q5_k, DType::q5_k, Precision::bf16)->Apply(few_rows);
BENCHMARK_CAPTURE(linear, decode_q4_k, DType::q4_k, Precision::bf16)->Apply(few_rows);
BENCHMARK_CAPTURE(linear, decode_q4_0, DType::q4_0, Precision::bf16)->Apply(few_rows);

/// A share of x is not zero; `sparse` 0 does not announce it, for comparison. Beyond some share both are the
/// same product. GB/s are of all the file's bytes.
void sparse_linear(benchmark::State& state, DType weight) {
  const auto ops = make_cpu(state.range(2));
  Buffer x = filled(DType::f32, {state.range(0), 3072}), active(ops->active(), x.view().shape());
  uint64_t random = 7;
  for (int64_t i = 0; i < x.view().elements(); ++i) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    if (static_cast<int64_t>((random >> 33) % 100) >= state.range(1)) x.as<float>()[i] = 0;
  }
  convert(x, active);
  products(state, *ops, weight, active, 768, state.range(3) != 0);
}
void shares(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "percent", "threads", "sparse"})
      ->ArgsProduct({{1, 2, 8}, {30, 20, 10, 5}, {1, 0}, {0, 1}});
}
BENCHMARK_CAPTURE(sparse_linear, bf16, DType::bf16)->Apply(shares);
BENCHMARK_CAPTURE(sparse_linear, q8_0, DType::q8_0)->Apply(shares);
BENCHMARK_CAPTURE(sparse_linear, q6_k, DType::q6_k)->Apply(shares);
BENCHMARK_CAPTURE(sparse_linear, q5_k, DType::q5_k)->Apply(shares);
BENCHMARK_CAPTURE(sparse_linear, q4_k, DType::q4_k)->Apply(shares);
BENCHMARK_CAPTURE(sparse_linear, q4_0, DType::q4_0)->Apply(shares);

void wkv7(benchmark::State& state) {
  const int64_t tokens = state.range(0), heads = state.range(1), width = heads * kHeadSize;
  const auto ops = make_cpu(state.range(2));
  const Shape all{tokens, width};
  const Buffer r = filled(DType::f32, all), w = filled(DType::f32, all, 0.9), k = filled(DType::f32, all),
               v = filled(DType::f32, all), a = filled(DType::f32, all, 0.1),
               b = filled(DType::f32, all, 0.1);
  Buffer y(DType::f32, all);
  const int64_t copies = tokens > 8 ? 1 : 12;  // the layers of a model: states do not stay in the first cache
  std::vector<Buffer> states;
  for (int64_t i = 0; i < copies; ++i) states.push_back(filled(DType::f32, {heads, kHeadSize, kHeadSize}));
  const std::vector<int64_t> offsets{0, tokens};
  size_t next = 0;
  for (auto _ : state) {
    void* one = states[next++ % states.size()].view().data();
    ops->wkv7({r, w, k, v, a, b, offsets, std::span(&one, 1), y});
  }
  // w⊙S, S·a, + (S a) bᵀ, + v kᵀ, S·r for each element of the state.
  rate(state, "GFLOP/s", 9.0 * static_cast<double>(tokens * width * kHeadSize));
}
BENCHMARK(wkv7)->ArgNames({"tokens", "heads", "threads"})->ArgsProduct({{1, 4, 16, 512}, {12}, {1, 0}});

/// The recurrence with what stands around it, as a prompt has it.
void wkv7_step(benchmark::State& state, Precision precision) {
  const int64_t tokens = state.range(0), heads = state.range(1), width = heads * kHeadSize;
  const auto ops = make_cpu(state.range(2), precision);
  const Shape all{tokens, width};
  std::vector<Buffer> rows, one;
  for (int i = 0; i < 12; ++i) rows.push_back(filled(DType::f32, all));
  for (int i = 0; i < 8; ++i) one.push_back(filled(DType::f32, {width}));
  Buffer y(ops->active(), all), wkv = filled(DType::f32, {heads, kHeadSize, kHeadSize});
  const std::vector<int64_t> offsets{0, tokens};
  void* states = wkv.view().data();
  const View k = rows[0], v = rows[1], r = rows[2], w = rows[3], a = rows[4], b = rows[5], read = rows[6];
  for (auto _ : state) {
    ops->wkv7_step(
        {{rows[7], rows[8], rows[9], k, v, rows[10], one[0], one[1], one[2], one[3], one[4], w, k, v, a, b},
         {r, w, k, v, a, b, offsets, std::span(&states, 1), read},
         {read, r, k, v, rows[11], one[5], one[6], one[7], 64e-5f, y}});
  }
  rate(state, "tokens/s", static_cast<double>(tokens));
}
void step_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "heads", "threads"})->ArgsProduct({{1, 8, 12, 16, 24, 32, 512}, {12}, {1, 0}});
}
BENCHMARK_CAPTURE(wkv7_step, f32, Precision::f32)->Apply(step_sizes);
BENCHMARK_CAPTURE(wkv7_step, bf16, Precision::bf16)->Apply(step_sizes);

void rows_operation(benchmark::State& state, const std::string& operation) {
  const int64_t rows = state.range(0), width = state.range(1);
  const auto ops = make_cpu(state.range(2));
  const Shape all{rows, width};
  std::vector<Buffer> in, one, out;
  for (int i = 0; i < 6; ++i) {
    in.push_back(filled(DType::f32, all));
    one.push_back(filled(DType::f32, {width}));
    out.emplace_back(DType::f32, all);
  }
  Buffer mix = filled(DType::f32, {6, width});
  std::vector<Buffer> active;
  std::vector<View> active_views;
  for (int i = 0; i < 6; ++i) active.emplace_back(ops->active(), all);
  for (Buffer& buffer : active) active_views.push_back(buffer);
  const std::vector<int64_t> offsets{0, rows};
  void* last = one[0].view().data();
  double arrays = 0;
  for (auto _ : state) {
    if (operation == "layer_norm") {
      ops->layer_norm(in[0], one[0], one[1], 1e-5f, out[0]);
      arrays = 2;
    } else if (operation == "token_shift") {
      ops->token_shift(in[0], mix, offsets, std::span(&last, 1), active_views);
      arrays = 4;
    } else if (operation == "operands") {
      ops->wkv7_operands({in[0], in[1], in[2], in[3], in[4], in[5], one[0], one[1], one[2], one[3], one[4],
                          out[0], out[1], out[2], out[3], out[4]});
      arrays = 11;
    } else {
      ops->wkv7_output({in[0], in[1], in[2], in[3], in[4], one[0], one[1], one[2], 64e-5f, active_views[0]});
      arrays = 5.5;
    }
  }
  rate(state, "GB/s", 4 * arrays * static_cast<double>(rows * width));
}
void row_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "C", "threads"})->ArgsProduct({{1, 512}, {768}, {1, 0}});
}
BENCHMARK_CAPTURE(rows_operation, layer_norm, "layer_norm")->Apply(row_sizes);
BENCHMARK_CAPTURE(rows_operation, token_shift, "token_shift")->Apply(row_sizes);
BENCHMARK_CAPTURE(rows_operation, wkv7_operands, "operands")->Apply(row_sizes);
BENCHMARK_CAPTURE(rows_operation, wkv7_output, "output")->Apply(row_sizes);

/// The last `rows` of `length` tokens. GFLOP/s count the scores and sums of the keys that the queries see,
/// not the gates; GB/s the pages that a single query reads.
void attention(benchmark::State& state, DType dtype) {
  const int64_t rows = state.range(0), length = state.range(1), chunk = state.range(2),
                top_k = state.range(3);
  constexpr int64_t kHeads = 12;
  const auto ops = make_cpu(state.range(4));
  // A single query's keys come from memory, as a token meets those of each block once; where it reads few of
  // many, from a cache, so as not to fill memory with the others.
  const auto read = static_cast<int64_t>(bytes_of(dtype, 2 * top_k * chunk * kHeads * kHeadSize));
  const auto whole = static_cast<int64_t>(bytes_of(dtype, 2 * length * kHeads * kHeadSize));
  const int64_t copies =
      rows == 1 ? 1 + std::min((int64_t{512} << 20) / read, (int64_t{1} << 30) / whole) : 1;
  const auto seen_chunks = static_cast<size_t>((length + chunk - 1) / chunk);
  std::vector<Buffer> pages;
  std::vector<void*> keys, values, sums;
  for (int64_t begin = 0; begin < copies * length; begin += chunk) {
    for (auto* list : {&keys, &values, &sums}) {
      const bool sum = list == &sums;
      pages.push_back(sum ? filled(DType::f32, {kHeads, kHeadSize})
                          : filled(dtype, {kHeads, chunk, kHeadSize}));
      // Different sums, so that queries choose different chunks.
      if (sum) pages.back().as<float>()[(begin / chunk * 37) % (kHeads * kHeadSize)] += 1;
      list->push_back(pages.back().view().data());
    }
  }
  const auto kv_of = [&](size_t copy) {
    const auto of = [&](std::span<void* const> all) { return all.subspan(copy * seen_chunks, seen_chunks); };
    KvChunks kv;
    kv.chunk_size = chunk;
    kv.length = length;
    kv.dtype = dtype;
    kv.keys = of(keys);
    kv.values = of(values);
    kv.key_sums = of(sums);
    return kv;
  };
  const std::vector<int64_t> offsets{0, rows};
  const Buffer q = filled(DType::f32, {rows, kHeads * kHeadSize});
  Buffer y(ops->active(), {rows, kHeads * kHeadSize});
  size_t turn = 0;
  for (auto _ : state) {
    const KvChunks kv = kv_of(turn++ % static_cast<size_t>(copies));
    ops->chunk_attention({q, offsets, std::span(&kv, 1), top_k, y});
  }
  double seen = 0;
  for (int64_t position = length - rows; position < length; ++position) {
    seen += static_cast<double>(position % chunk + 1 + std::min(position / chunk, top_k - 1) * chunk);
  }
  rate(state, "GFLOP/s", seen * kHeads * kHeadSize * 4);
  if (rows == 1) rate(state, "GB/s", seen * kHeads * static_cast<double>(bytes_of(dtype, 2 * kHeadSize)));
}
void attention_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "length", "chunk", "top_k", "threads"});
  for (const int64_t threads : {1, 0}) {
    b->Args({1, 8192, 2048, 3, threads})->Args({1, 65536, 64, 4, threads});
    b->Args({512, 512, 2048, 3, threads})
        ->Args({512, 32768, 2048, 3, threads})
        ->Args({512, 65536, 64, 4, threads});
    b->Args({4096, 8192, 2048, 3, threads});
  }
}
BENCHMARK_CAPTURE(attention, f32, DType::f32)->Apply(attention_sizes);
BENCHMARK_CAPTURE(attention, bf16, DType::bf16)->Apply(attention_sizes);

}  // namespace
}  // namespace rwkvx

BENCHMARK_MAIN();
