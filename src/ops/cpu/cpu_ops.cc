#include "ops/cpu/cpu_ops.h"

#include <cstring>
#include <vector>

#include "base/assert.h"
#include "base/error.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/cpu_training.h"
#include "ops/cpu/instruction_sets.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/thread_pool.h"
#include "tensor/quantise.h"

namespace rwkvx {
namespace {

/// Rows of `width` elements that are worth a second thread, for operations that touch every element once or
/// twice.
int64_t row_grain(int64_t width) { return std::max<int64_t>(2, 32768 / std::max<int64_t>(width, 1)); }

class CpuOps final : public Ops {
 public:
  CpuOps(Precision precision, int threads, const cpu::TileUnit* tiles)
      : precision_(precision),
        active_(precision == Precision::bf16 && cpu::has_bf16_products() ? DType::bf16 : DType::f32),
        tiles_(active_ == DType::bf16 ? tiles : nullptr),
        pool_(threads),
        linear_(pool_, precision == Precision::bf16, tiles_),
        attention_scratch_(static_cast<size_t>(threads)) {}

  std::string_view name() const override { return "cpu"; }
  std::string hardware() const override { return cpu::instruction_sets(tiles_ != nullptr); }
  Precision precision() const override { return precision_; }
  DType active() const override { return active_; }
  /// Decoding a long context with quantised weights would read as many bytes of keys and values as of
  /// weights.
  DType kv_type(DType weights) const override {
    return precision_ == Precision::bf16 && is_quantised(weights) ? DType::i8 : Ops::kv_type(weights);
  }
  Allocator& allocator() override { return host_allocator(); }
  int threads() const override { return pool_.threads(); }
  bool rounds_attention() const override { return tiles_ != nullptr; }
  bool rounds_recurrence(int64_t rows) const override {
    return tiles_ != nullptr && rows >= cpu::kWkv7TileRows;
  }

  using Ops::prepare;
  Matrix prepare(ConstView weight, bool sparse_input) override {
    RWKVX_ASSERT(weight.shape().rank() == 2);
    const DType type = weight.dtype();
    if (type != DType::f32 && type != DType::bf16 && type != DType::f16 && !is_computable(type)) {
      fail("the cpu backend cannot multiply with {} weights; convert them to f32, bf16, f16 or q8_0",
           rwkvx::name(type));
    }
    return linear_.prepare(weight, sparse_input);
  }

  void embed(std::span<const int32_t> tokens, ConstView table, View y) override {
    pool_.run_ranges(y.dim(0), row_grain(y.dim(1)),
                     [&](int64_t begin, int64_t end) { cpu::embed_rows(tokens, table, y, begin, end); });
  }

  void layer_norm(ConstView x, ConstView gain, ConstView bias, float eps, View y) override {
    RWKVX_ASSERT(x.dim(1) % kHeadSize == 0);
    pool_.run_ranges(x.dim(0), row_grain(x.dim(1)), [&](int64_t begin, int64_t end) {
      cpu::layer_norm_rows(x, gain, bias, eps, y, begin, end);
    });
  }

  void token_shift(ConstView x, ConstView mix, std::span<const int64_t> offsets, std::span<void* const> last,
                   std::span<const View> y) override {
    RWKVX_ASSERT(x.dim(1) % kHeadSize == 0);
    const int64_t width = x.dim(1), grain = row_grain(width * static_cast<int64_t>(y.size() + 1));
    const float* rows = x.as<float>();
    pool_.run_ranges(x.dim(0), grain, [&](int64_t begin, int64_t end) {
      for (size_t s = 0; s + 1 < offsets.size(); ++s) {
        const int64_t first = std::max(begin, offsets[s]), stop = std::min(end, offsets[s + 1]);
        if (first >= stop) continue;
        const float* before =
            first == offsets[s] ? static_cast<const float*>(last[s]) : rows + (first - 1) * width;
        cpu::token_shift_rows(x, mix, before, y, first, stop);
      }
    });
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      std::memcpy(last[s], rows + (offsets[s + 1] - 1) * width, static_cast<size_t>(width) * sizeof(float));
    }
  }

  using Ops::linear;
  void linear(std::span<const LinearCall> calls) override { linear_.run(calls); }

  void norm_shift_linear(const NormShift& norm, std::span<const LinearCall> calls) override {
    if (!linear_.run_normed(norm, calls)) Ops::norm_shift_linear(norm, calls);
  }

  void wkv7_operands(const Wkv7Operands& call) override {
    pool_.run_ranges(call.k.dim(0), row_grain(8 * call.k.dim(1)),
                     [&](int64_t begin, int64_t end) { cpu::wkv7_operands_rows(call, begin, end); });
  }

  void wkv7(const Wkv7Call& call) override {
    const int64_t heads = call.r.dim(1) / kHeadSize;
    const auto sequences = static_cast<int64_t>(call.states.size());
    const bool worth_it = call.r.dim(0) * heads >= 16;
    run_tasks(sequences * heads, worth_it, [&](int64_t task, int) {
      const auto s = static_cast<size_t>(task / heads);
      const int64_t h = task % heads;
      float* state = static_cast<float*>(call.states[s]) + h * kHeadSize * kHeadSize;
      const int64_t first = call.offsets[s], end = call.offsets[s + 1];
      if (!call.kept) return cpu::wkv7_head(call, h, first, end, state);
      int64_t interval = wkv7_intervals(call.offsets.first(s + 1));
      for (int64_t begin = first; begin < end; begin += kWkv7Interval, ++interval) {
        const auto at = static_cast<size_t>((interval * heads + h) * kHeadSize * kHeadSize);
        std::memcpy(call.kept.as<float>() + at, state, kHeadSize * kHeadSize * sizeof(float));
        cpu::wkv7_head(call, h, begin, std::min(begin + kWkv7Interval, end), state);
      }
    });
  }

  void wkv7_output(const Wkv7Output& call) override {
    pool_.run_ranges(call.x.dim(0), row_grain(4 * call.x.dim(1)),
                     [&](int64_t begin, int64_t end) { cpu::wkv7_output_rows(call, begin, end); });
  }

  void wkv7_step(const Wkv7Step& call) override {
    const Wkv7Call& recurrence = call.recurrence;
    const int64_t heads = recurrence.r.dim(1) / kHeadSize, rows = recurrence.r.dim(0);
    const auto sequences = static_cast<int64_t>(recurrence.states.size());
    // A thread takes whole heads, so that operands never leave its cache. Too few: rows are shared too.
    if (sequences * heads < pool_.threads() && rows > 1) return Ops::wkv7_step(call);
    run_tasks(sequences * heads, rows * heads >= 8, [&](int64_t task, int) {
      const auto s = static_cast<size_t>(task / heads);
      const int64_t h = task % heads;
      float* state = static_cast<float*>(recurrence.states[s]) + h * kHeadSize * kHeadSize;
      cpu::wkv7_step_head(call, h, recurrence.offsets[s], recurrence.offsets[s + 1], tiles_, state);
    });
  }

  void kv_append(ConstView k, ConstView v, std::span<const int64_t> offsets,
                 std::span<const KvChunks> kv) override {
    const int64_t heads = k.dim(1) / kHeadSize;
    const auto sequences = static_cast<int64_t>(kv.size());
    run_tasks(sequences * heads, k.elements() >= (1 << 16), [&](int64_t task, int) {
      const auto s = static_cast<size_t>(task / heads);
      cpu::kv_append_head(k, v, offsets[s], offsets[s + 1], kv[s], task % heads);
    });
  }

  void chunk_attention(const ChunkAttention& call) override {
    RWKVX_ASSERT(call.top_k >= 1);
    const int64_t heads = call.q.dim(1) / kHeadSize;
    // Few heads for many threads: shorter tasks, though long ones let more queries share a chunk's keys.
    const int64_t parts = std::max<int64_t>(1, 4 * pool_.threads() / heads);
    const int64_t most = std::clamp<int64_t>(call.q.dim(0) / parts, 128, cpu::kMostTaskRows);
    // What a backward follows is computed as it computes.
    const cpu::TileUnit* tiles = call.lse ? nullptr : tiles_;
    pack_key_sums(call, heads);
    attention_tasks_.clear();
    int64_t keys = 0;
    for (size_t s = 0; s + 1 < call.offsets.size(); ++s) {
      const int64_t rows = call.offsets[s + 1] - call.offsets[s];
      keys += rows * std::min(call.kv[s].length, call.top_k * call.kv[s].chunk_size);
      for (int64_t begin = call.offsets[s]; begin < call.offsets[s + 1]; begin += most) {
        const int64_t end = std::min(begin + most, call.offsets[s + 1]);
        for (int64_t head = 0; head < heads; ++head) {
          const cpu::PackedSums* packed = packed_[s] != nullptr ? &packed_[s]->head(head) : nullptr;
          attention_tasks_.push_back({&call, s, head, begin, end, packed, tiles});
        }
      }
    }
    run_tasks(static_cast<int64_t>(attention_tasks_.size()), keys * heads >= 2000,
              [&](int64_t task, int thread) {
                cpu::attend(attention_tasks_[static_cast<size_t>(task)],
                            attention_scratch_[static_cast<size_t>(thread)]);
              });
  }

  void kv_vote(const KvVote& call) override {
    const int64_t heads = call.q.dim(1) / kHeadSize;
    RWKVX_ASSERT(call.votes.dim(0) == heads && call.votes.dim(1) <= call.first);
    run_tasks(heads, call.q.dim(0) * call.seen() * heads >= 2000, [&](int64_t head, int thread) {
      cpu::kv_vote_head(call, head, attention_scratch_[static_cast<size_t>(thread)].scores);
    });
  }

  void kv_distinct(const KvDistinct& call) override {
    RWKVX_ASSERT(call.scores.dim(1) <= call.kv.length);
    run_tasks(call.scores.dim(0), call.scores.elements() >= 100,
              [&](int64_t head, int) { cpu::kv_distinct_head(call, head); });
  }

  void kv_keep(const KvChunks& kv, ConstView kept) override {
    run_tasks(kept.dim(0), kept.elements() >= 1024,
              [&](int64_t head, int) { cpu::kv_keep_head(kv, kept, head); });
  }

  void gather_rows(ConstView x, std::span<const int64_t> rows, View y) override {
    const auto row_bytes = bytes_of(x.dtype(), x.dim(1));
    for (size_t i = 0; i < rows.size(); ++i) {
      std::memcpy(static_cast<std::byte*>(y.data()) + i * row_bytes,
                  static_cast<const std::byte*>(x.data()) + static_cast<uint64_t>(rows[i]) * row_bytes,
                  row_bytes);
    }
  }

  void upload(std::span<const std::byte> host, void* device) override {
    std::memcpy(device, host.data(), host.size());
  }
  void download(const void* device, std::span<std::byte> host) override {
    std::memcpy(host.data(), device, host.size());
  }
  void copy(const void* from, void* to, size_t bytes) override { std::memcpy(to, from, bytes); }

  TrainingOps& training() override { return *training_; }

 private:
  /// Chunks that the last query of a sequence may choose from.
  static int64_t earlier_chunks(const KvChunks& kv) { return (kv.length - 1) / kv.chunk_size; }

  /// Where there is a choice among many chunks: packed_ of each sequence.
  void pack_key_sums(const ChunkAttention& call, int64_t heads) {
    packed_.assign(call.kv.size(), nullptr);
    size_t unkept = 0;
    int64_t left = 0;
    for (size_t s = 0; s < call.kv.size(); ++s) {
      const KvChunks& kv = call.kv[s];
      const int64_t chunks = earlier_chunks(kv);
      const int64_t rows = call.offsets[s + 1] - call.offsets[s];
      if (chunks < std::max(cpu::kFewChunks, call.top_k) || call.top_k == 1) continue;
      if (kv.derived != nullptr) {
        if (!*kv.derived) *kv.derived = std::make_unique<cpu::PackedHeads>(heads);
        packed_[s] = static_cast<cpu::PackedHeads*>(kv.derived->get());
      } else if (rows >= cpu::kRowsWorthPacking) {
        if (unkept == unkept_.size()) unkept_.push_back(std::make_unique<cpu::PackedHeads>(heads));
        packed_[s] = unkept_[unkept++].get();
        packed_[s]->clear(heads);
      }
      if (packed_[s] != nullptr) left += chunks - packed_[s]->head(0).count;
    }
    run_tasks(static_cast<int64_t>(packed_.size()) * heads, left * heads >= 256, [&](int64_t task, int) {
      const auto s = static_cast<size_t>(task / heads);
      if (packed_[s] == nullptr) return;
      const KvChunks& kv = call.kv[s];
      cpu::pack_sums(kv, task % heads, earlier_chunks(kv), packed_[s]->head(task % heads));
    });
  }

  template <typename Body>
  void run_tasks(int64_t count, bool worth_threads, const Body& body) {
    if (worth_threads) return pool_.run(count, body);
    for (int64_t task = 0; task < count; ++task) body(task, 0);
  }

  Precision precision_;
  DType active_;
  const cpu::TileUnit* tiles_;
  cpu::ThreadPool pool_;
  cpu::Linear linear_;
  std::unique_ptr<TrainingOps> training_ = cpu::make_cpu_training(pool_);
  std::vector<cpu::AttentionTask> attention_tasks_;
  std::vector<cpu::PackedHeads*> packed_;  // of each sequence of a call; null: none
  std::vector<std::unique_ptr<cpu::PackedHeads>> unkept_;
  std::vector<cpu::AttentionScratch> attention_scratch_;  // one for each thread
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(Precision precision, int threads, const cpu::TileUnit* tiles) {
  if (precision == Precision::f64)
    fail("the cpu backend computes in f32 or bf16; f64 needs the reference backend");
  return std::make_unique<CpuOps>(precision, threads > 0 ? threads : cpu::usable_cores(), tiles);
}

}  // namespace rwkvx
