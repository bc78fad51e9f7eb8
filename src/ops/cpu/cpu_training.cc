#include "ops/cpu/cpu_training.h"

#include <vector>

#include "ops/cpu/wkv7_backward.h"
#include "ops/reference/reference_training.h"

namespace rwkvx::cpu {
namespace {

/// What has no kernel yet is the reference's.
class CpuTraining final : public TrainingOps {
 public:
  explicit CpuTraining(ThreadPool& pool) : pool_(pool), wkv7_scratch_(static_cast<size_t>(pool.threads())) {}

  void zero(View x) override { plain_->zero(x); }

  void embed_backward(std::span<const int32_t> tokens, ConstView dy, View dtable) override {
    plain_->embed_backward(tokens, dy, dtable);
  }
  void layer_norm_backward(const LayerNormBackward& call) override { plain_->layer_norm_backward(call); }
  void token_shift_backward(const TokenShiftBackward& call) override { plain_->token_shift_backward(call); }
  void linear_backward(std::span<const LinearBackward> calls) override { plain_->linear_backward(calls); }

  void wkv7_operands_backward(const Wkv7Operands& forward, const Wkv7OperandsGradients& g) override {
    plain_->wkv7_operands_backward(forward, g);
  }
  void wkv7_backward(const Wkv7Call& forward, const Wkv7Gradients& g) override {
    const int64_t heads = forward.r.dim(1) / kHeadSize;
    const auto sequences = static_cast<int64_t>(forward.offsets.size()) - 1;
    pool_.run(sequences * heads, [&](int64_t task, int thread) {
      cpu::wkv7_head_backward(forward, g, static_cast<size_t>(task / heads), task % heads,
                              wkv7_scratch_[static_cast<size_t>(thread)]);
    });
  }
  void wkv7_output_backward(const Wkv7Output& forward, const Wkv7OutputGradients& g) override {
    plain_->wkv7_output_backward(forward, g);
  }
  void chunk_attention_backward(const ChunkAttention& forward, const ChunkAttentionGradients& g) override {
    plain_->chunk_attention_backward(forward, g);
  }
  void gate_loss(const ChunkAttention& forward, const GateLoss& loss) override {
    plain_->gate_loss(forward, loss);
  }

  void cross_entropy(const CrossEntropy& call) override { plain_->cross_entropy(call); }
  void sums_of_squares(std::span<const ConstView> xs, std::span<double> sums) override {
    plain_->sums_of_squares(xs, sums);
  }
  void adamw(std::span<const AdamWTensor> tensors, const AdamWStep& step) override {
    plain_->adamw(tensors, step);
  }

 private:
  ThreadPool& pool_;
  std::vector<Wkv7BackwardScratch> wkv7_scratch_;  // one for each thread
  std::unique_ptr<TrainingOps> plain_ = make_reference_training();
};

}  // namespace

std::unique_ptr<TrainingOps> make_cpu_training(ThreadPool& pool) {
  return std::make_unique<CpuTraining>(pool);
}

}  // namespace rwkvx::cpu
