#include "ops/cuda/cuda_ops.h"

#include "base/assert.h"
#include "base/error.h"
#include "ops/cuda/cuda_training.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/matrix.h"
#include "ops/cuda/recordings.h"
#include "tensor/quantise.h"

namespace rwkvx {
namespace {

class CudaOps final : public Ops {
 public:
  CudaOps(Precision precision, int device)
      : precision_(precision), gpu_(device), training_(cuda::make_training(gpu_, precision)) {}

  std::string_view name() const override { return "cuda"; }
  std::string hardware() const override { return std::string(gpu_.name()); }
  Precision precision() const override { return precision_; }
  bool rounds_attention() const override { return precision_ == Precision::bf16; }
  Allocator& allocator() override { return gpu_.allocator(); }
  Allocator& host_memory() override { return gpu_.host_memory(); }

  bool reads_host_memory() const override { return false; }

  using Ops::prepare;
  Matrix prepare(ConstView weight, bool sparse_input) override {
    RWKVX_ASSERT(weight.shape().rank() == 2);
    const DType type = weight.dtype();
    if (type != DType::f32 && type != DType::bf16 && type != DType::f16 && !is_computable(type)) {
      fail("the cuda backend cannot multiply with {} weights; convert them to f32, bf16, f16 or q8_0",
           rwkvx::name(type));
    }
    return {weight, cuda::prepare_matrix(gpu_, weight, sparse_input)};
  }

  Matrix prepare_table(ConstView table) override {
    auto copy =
        std::make_shared<Buffer>(DType::u8, Shape{static_cast<int64_t>(table.bytes())}, gpu_.allocator());
    gpu_.upload(table.data(), copy->view().data(), table.bytes());
    return {ConstView(copy->view().data(), table.dtype(), table.shape()), copy};
  }

  void embed(std::span<const int32_t> tokens, ConstView table, View y) override {
    cuda::embed(gpu_, tokens, table, y);
  }
  void layer_norm(ConstView x, ConstView gain, ConstView bias, float eps, View y) override {
    cuda::layer_norm(gpu_, x, gain, bias, eps, y);
  }
  void token_shift(ConstView x, ConstView mix, std::span<const int64_t> offsets, std::span<void* const> last,
                   std::span<const View> y) override {
    cuda::token_shift(gpu_, x, mix, offsets, last, y);
  }

  using Ops::linear;
  void linear(std::span<const LinearCall> calls) override { cuda::linear(gpu_, calls); }

  void wkv7_operands(const Wkv7Operands& call) override { cuda::wkv7_operands(gpu_, call); }
  void wkv7(const Wkv7Call& call) override { cuda::wkv7(gpu_, call, precision_); }
  void wkv7_output(const Wkv7Output& call) override { cuda::wkv7_output(gpu_, call); }

  void norm_shift(const NormShift& call) override { cuda::norm_shift(gpu_, call); }
  void norm_shift_linear(const NormShift& norm, std::span<const LinearCall> calls) override {
    if (!cuda::norm_shift_linear(gpu_, norm, calls)) Ops::norm_shift_linear(norm, calls);
  }
  void wkv7_step(const Wkv7Step& call) override { cuda::wkv7_step(gpu_, call, precision_); }

  void kv_append(ConstView k, ConstView v, std::span<const int64_t> offsets,
                 std::span<const KvChunks> kv) override {
    cuda::kv_append(gpu_, k, v, offsets, kv);
  }
  void chunk_attention(const ChunkAttention& call) override { cuda::chunk_attention(gpu_, call, precision_); }
  void kv_vote(const KvVote& call) override { cuda::kv_vote(gpu_, call); }
  void kv_distinct(const KvDistinct& call) override { cuda::kv_distinct(gpu_, call); }
  void kv_keep(const KvChunks& kv, ConstView kept) override { cuda::kv_keep(gpu_, kv, kept); }

  void gather_rows(ConstView x, std::span<const int64_t> rows, View y) override {
    cuda::gather_rows(gpu_, x, rows, y);
  }

  void upload(std::span<const std::byte> host, void* device) override {
    gpu_.upload(host.data(), device, host.size());
  }
  void download(const void* device, std::span<std::byte> host) override {
    gpu_.download(device, host.data(), host.size());
  }
  void copy(const void* from, void* to, size_t bytes) override { gpu_.copy(from, to, bytes); }
  void synchronize() override { gpu_.synchronize(); }
  void replay(uint64_t key, const std::function<void()>& work) override { recordings_.run(gpu_, key, work); }
  Pieces pieces() const override { return {32768, gpu_.memory_bytes() / 8}; }

  TrainingOps& training() override { return *training_; }

 private:
  Precision precision_;
  cuda::Gpu gpu_;
  cuda::Recordings recordings_;
  std::unique_ptr<TrainingOps> training_;
};

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(Precision precision, int device) {
  if (precision == Precision::f64) fail("CUDA: there is no f64 on GPUs; use --device reference");
  return std::make_unique<CudaOps>(precision, device);
}

}  // namespace rwkvx
