#include "ops/cuda/cuda_training.h"

#include "ops/cuda/kernels.h"
#include "ops/cuda/matrix.h"

namespace rwkvx::cuda {
namespace {

class CudaTraining final : public TrainingOps {
 public:
  CudaTraining(Gpu& gpu, Precision precision) : gpu_(gpu), precision_(precision) {}

  void zero(View x) override { gpu_.zero(x.data(), x.bytes()); }

  void embed_backward(std::span<const int32_t> tokens, ConstView dy, View dtable) override {
    cuda::embed_backward(gpu_, tokens, dy, dtable);
  }
  void layer_norm_backward(const LayerNormBackward& call) override { cuda::layer_norm_backward(gpu_, call); }
  void token_shift_backward(const TokenShiftBackward& call) override {
    cuda::token_shift_backward(gpu_, call);
  }

  using TrainingOps::linear_backward;
  void linear_backward(std::span<const LinearBackward> calls) override { cuda::linear_backward(gpu_, calls); }

  void wkv7_operands_backward(const Wkv7Operands& forward, const Wkv7OperandsGradients& gradients) override {
    cuda::wkv7_operands_backward(gpu_, forward, gradients);
  }
  void wkv7_backward(const Wkv7Call& forward, const Wkv7Gradients& gradients) override {
    cuda::wkv7_backward(gpu_, forward, gradients, precision_);
  }
  void wkv7_output_backward(const Wkv7Output& forward, const Wkv7OutputGradients& gradients) override {
    cuda::wkv7_output_backward(gpu_, forward, gradients);
  }
  void chunk_attention_backward(const ChunkAttention& forward,
                                const ChunkAttentionGradients& gradients) override {
    cuda::chunk_attention_backward(gpu_, forward, gradients, precision_);
  }

  void gate_loss(const ChunkAttention& forward, const GateLoss& loss) override {
    cuda::gate_loss(gpu_, forward, loss);
  }
  void pointing_loss(const ChunkAttention& forward, const PointingLoss& loss) override {
    cuda::pointing_loss(gpu_, forward, loss);
  }
  void cross_entropy(const CrossEntropy& call) override { cuda::cross_entropy(gpu_, call); }

  void sums_of_squares(std::span<const ConstView> xs, std::span<double> sums) override {
    cuda::sums_of_squares(gpu_, xs, sums);
  }
  void adamw(std::span<const AdamWTensor> tensors, const AdamWStep& step) override {
    cuda::adamw(gpu_, tensors, step);
  }

 private:
  Gpu& gpu_;
  Precision precision_;
};

}  // namespace

std::unique_ptr<TrainingOps> make_training(Gpu& gpu, Precision precision) {
  return std::make_unique<CudaTraining>(gpu, precision);
}

}  // namespace rwkvx::cuda
