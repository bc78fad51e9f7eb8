#include "ops/reference/reference_training.h"

#include <cstring>

#include "ops/reference/backward.h"

namespace rwkvx {
namespace {

using reference::add_to;
using reference::at;

class ReferenceTraining final : public TrainingOps {
 public:
  void zero(View x) override { std::memset(x.data(), 0, x.bytes()); }

  void embed_backward(std::span<const int32_t> tokens, ConstView dy, View dtable) override {
    const int64_t width = dy.dim(1);
    for (int64_t t = 0; t < dy.dim(0); ++t) {
      for (int64_t c = 0; c < width; ++c) {
        add_to(dtable, tokens[static_cast<size_t>(t)] * width + c, at(dy, t, c));
      }
    }
  }
  void layer_norm_backward(const LayerNormBackward& call) override { reference::layer_norm_backward(call); }
  void token_shift_backward(const TokenShiftBackward& call) override {
    reference::token_shift_backward(call);
  }
  void linear_backward(std::span<const LinearBackward> calls) override {
    for (const LinearBackward& call : calls) reference::linear_backward(call);
  }
  void wkv7_operands_backward(const Wkv7Operands& forward, const Wkv7OperandsGradients& g) override {
    reference::wkv7_operands_backward(forward, g);
  }
  void wkv7_backward(const Wkv7Call& forward, const Wkv7Gradients& g) override {
    reference::wkv7_backward(forward, g);
  }
  void wkv7_output_backward(const Wkv7Output& forward, const Wkv7OutputGradients& g) override {
    reference::wkv7_output_backward(forward, g);
  }
  void chunk_attention_backward(const ChunkAttention& forward, const ChunkAttentionGradients& g) override {
    reference::chunk_attention_backward(forward, g);
  }
  void gate_loss(const ChunkAttention& forward, const GateLoss& loss) override {
    reference::gate_loss(forward, loss);
  }
  void pointing_loss(const ChunkAttention& forward, const PointingLoss& loss) override {
    reference::pointing_loss(forward, loss);
  }
  void cross_entropy(const CrossEntropy& call) override { reference::cross_entropy(call); }
  void sums_of_squares(std::span<const ConstView> xs, std::span<double> sums) override {
    for (size_t x = 0; x < xs.size(); ++x) {
      sums[x] = 0;
      for (int64_t i = 0; i < xs[x].elements(); ++i) sums[x] += at(xs[x], i) * at(xs[x], i);
    }
  }
  void adamw(std::span<const AdamWTensor> tensors, const AdamWStep& step) override {
    for (const AdamWTensor& tensor : tensors) reference::adamw(tensor, step);
  }
};

}  // namespace

std::unique_ptr<TrainingOps> make_reference_training() { return std::make_unique<ReferenceTraining>(); }

}  // namespace rwkvx
