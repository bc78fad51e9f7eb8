#include "ops/cpu/cpu_training.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/cpu/attention_backward.h"
#include "ops/cpu/backward_kernels.h"
#include "ops/cpu/gate_loss.h"
#include "ops/cpu/linear_backward.h"
#include "ops/cpu/pointing_loss.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/wkv7_backward.h"

namespace rwkvx::cpu {
namespace {

/// Whatever the number of threads, sums over rows are taken in the same parts and the same order.
class CpuTraining final : public TrainingOps {
 public:
  explicit CpuTraining(ThreadPool& pool)
      : pool_(pool), products_(pool), thread_scratch_(static_cast<size_t>(pool.threads())) {}

  void zero(View x) override {
    constexpr int64_t kBlock = 1 << 20;
    const auto bytes = static_cast<int64_t>(x.bytes());
    pool_.run((bytes + kBlock - 1) / kBlock, [&](int64_t block, int) {
      std::memset(static_cast<std::byte*>(x.data()) + block * kBlock, 0,
                  static_cast<size_t>(std::min(kBlock, bytes - block * kBlock)));
    });
  }

  void embed_backward(std::span<const int32_t> tokens, ConstView dy, View dtable) override {
    const int64_t parts = dy.dim(1) / kHeadSize;  // a token's rows are added by one thread
    pool_.run(parts, [&](int64_t part, int) {
      embed_backward_channels(tokens, dy, dtable, part * kHeadSize, (part + 1) * kHeadSize);
    });
  }

  void layer_norm_backward(const LayerNormBackward& call) override {
    RWKVX_ASSERT(call.x.dim(1) % kHeadSize == 0);
    over_rows(
        call.x.dim(0), {call.dgain, call.dbias}, call.x.dim(1),
        [&](int64_t begin, int64_t end, float* sums) { layer_norm_backward_rows(call, begin, end, sums); });
  }

  void token_shift_backward(const TokenShiftBackward& call) override {
    RWKVX_ASSERT(call.x.dim(1) % kHeadSize == 0);
    over_rows(call.x.dim(0), {call.dmix}, call.mix.elements(), [&](int64_t begin, int64_t end, float* sums) {
      for (size_t s = 0; s + 1 < call.offsets.size(); ++s) {
        const int64_t first = call.offsets[s], last = call.offsets[s + 1];
        const int64_t from = std::max(begin, first), to = std::min(end, last);
        if (from < to) token_shift_backward_rows(call, first, last, from, to, sums);
      }
    });
    if (!call.around.to_before) return;
    auto* to = call.around.to_before.as<float>();
    const auto* mix = call.mix.as<float>();
    const int64_t width = call.x.dim(1);
    for (int64_t c = 0; c < width; ++c) {
      to[c] = 0;
      for (size_t m = 0; m < call.dy.size(); ++m) {
        to[c] += call.dy[m].as<float>()[c] * mix[static_cast<int64_t>(m) * width + c];
      }
    }
  }

  void linear_backward(std::span<const LinearBackward> calls) override { products_.run(calls); }

  void wkv7_operands_backward(const Wkv7Operands& forward, const Wkv7OperandsGradients& g) override {
    over_rows(forward.k.dim(0), {g.dw0, g.da0, g.dv0, g.dk_k, g.dk_a}, forward.k.dim(1),
              [&](int64_t begin, int64_t end, float* sums) {
                wkv7_operands_backward_rows(forward, g, begin, end, sums);
              });
  }

  void wkv7_backward(const Wkv7Call& forward, const Wkv7Gradients& g) override {
    over_heads(forward.offsets, forward.r.dim(1), [&](size_t sequence, int64_t head, int thread) {
      wkv7_head_backward(forward, g, sequence, head, thread_scratch_[static_cast<size_t>(thread)].wkv7);
    });
  }

  void wkv7_output_backward(const Wkv7Output& forward, const Wkv7OutputGradients& g) override {
    over_rows(forward.x.dim(0), {g.dr_k, g.dgain, g.dbias}, forward.x.dim(1),
              [&](int64_t begin, int64_t end, float* sums) {
                wkv7_output_backward_rows(forward, g, begin, end, sums);
              });
  }

  void chunk_attention_backward(const ChunkAttention& forward, const ChunkAttentionGradients& g) override {
    over_heads(forward.offsets, forward.q.dim(1), [&](size_t sequence, int64_t head, int thread) {
      attend_backward(forward, g, sequence, head, thread_scratch_[static_cast<size_t>(thread)].attention);
    });
  }

  void gate_loss(const ChunkAttention& forward, const GateLoss& loss) override {
    over_heads(forward.offsets, forward.q.dim(1), [&](size_t sequence, int64_t head, int thread) {
      gate_loss_head(forward, loss, sequence, head, thread_scratch_[static_cast<size_t>(thread)].gate_loss);
    });
  }

  void pointing_loss(const ChunkAttention& forward, const PointingLoss& loss) override {
    over_heads(forward.offsets, forward.q.dim(1), [&](size_t sequence, int64_t head, int thread) {
      pointing_loss_head(forward, loss, sequence, head,
                         thread_scratch_[static_cast<size_t>(thread)].pointing_loss);
    });
  }

  void cross_entropy(const CrossEntropy& call) override {
    pool_.run_ranges(call.logits.dim(0), std::max<int64_t>(2, 8192 / call.logits.dim(1)),
                     [&](int64_t begin, int64_t end) { cross_entropy_rows(call, begin, end); });
  }

  void sums_of_squares(std::span<const ConstView> xs, std::span<double> sums) override {
    std::vector<Block> blocks = blocks_of(xs.size(), [&](size_t i) { return xs[i].elements(); });
    std::vector<double> parts(blocks.size());
    pool_.run(static_cast<int64_t>(blocks.size()), [&](int64_t task, int) {
      const Block& block = blocks[static_cast<size_t>(task)];
      parts[static_cast<size_t>(task)] =
          sum_of_squares(xs[block.tensor].as<float>() + block.begin, block.end - block.begin);
    });
    std::fill(sums.begin(), sums.end(), 0.0);
    for (size_t i = 0; i < blocks.size(); ++i) sums[blocks[i].tensor] += parts[i];
  }

  void adamw(std::span<const AdamWTensor> tensors, const AdamWStep& step) override {
    const std::vector<Block> blocks =
        blocks_of(tensors.size(), [&](size_t i) { return tensors[i].master.elements(); });
    pool_.run(static_cast<int64_t>(blocks.size()), [&](int64_t task, int) {
      const Block& block = blocks[static_cast<size_t>(task)];
      adamw_range(tensors[block.tensor], step, block.begin, block.end);
    });
  }

 private:
  /// A range of one tensor's elements.
  struct Block {
    size_t tensor;
    int64_t begin, end;
  };
  template <typename Elements>
  static std::vector<Block> blocks_of(size_t tensors, Elements elements) {
    constexpr int64_t kBlock = 1 << 16;
    std::vector<Block> blocks;
    for (size_t i = 0; i < tensors; ++i) {
      for (int64_t begin = 0; begin < elements(i); begin += kBlock) {
        blocks.push_back({i, begin, std::min(begin + kBlock, elements(i))});
      }
    }
    return blocks;
  }

  template <typename Body>
  void over_heads(std::span<const int64_t> offsets, int64_t width, const Body& body) {
    const int64_t heads = width / kHeadSize, sequences = static_cast<int64_t>(offsets.size()) - 1;
    pool_.run(sequences * heads, [&](int64_t task, int thread) {
      body(static_cast<size_t>(task / heads), task % heads, thread);
    });
  }

  /// Calls body(begin, end, sums) for parts of the rows; each part has zeroed sums of its own, `width` for
  /// each parameter, which are then added to the parameters that are not frozen.
  template <typename Body>
  void over_rows(int64_t rows, std::initializer_list<View> parameters, int64_t width, const Body& body) {
    constexpr int64_t kMostParts = 64, kRows = 32;
    const int64_t parts = std::clamp<int64_t>(rows / kRows, 1, kMostParts);
    const auto count = static_cast<int64_t>(parameters.size()), size = count * width;
    float* sums = scratch_.take<float>(parts * size);
    pool_.run(parts, [&](int64_t part, int) {
      float* own = sums + part * size;
      std::fill(own, own + size, 0.0f);
      body(rows * part / parts, rows * (part + 1) / parts, own);
    });
    for (int64_t p = 0; p < count; ++p) {
      const View& parameter = *(parameters.begin() + p);
      if (!parameter) continue;
      auto* to = parameter.as<float>();
      for (int64_t part = 0; part < parts; ++part) {
        const float* from = sums + part * size + p * width;
        for (int64_t c = 0; c < width; ++c) to[c] += from[c];
      }
    }
  }

  struct ThreadScratch {
    Wkv7BackwardScratch wkv7;
    AttentionBackwardScratch attention;
    GateLossScratch gate_loss;
    PointingLossScratch pointing_loss;
  };

  ThreadPool& pool_;
  BackwardProducts products_;
  std::vector<ThreadScratch> thread_scratch_;
  Scratch scratch_;
};

}  // namespace

std::unique_ptr<TrainingOps> make_cpu_training(ThreadPool& pool) {
  return std::make_unique<CpuTraining>(pool);
}

}  // namespace rwkvx::cpu
