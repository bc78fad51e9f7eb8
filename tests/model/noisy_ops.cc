#include "model/noisy_ops.h"

#include <cmath>
#include <random>
#include <vector>

namespace rwkvx::test {
namespace {

class NoisyOps final : public Ops {
 public:
  explicit NoisyOps(uint64_t seed) : exact_(make_ops({"reference", Precision::f32, 1})), random_(seed) {}

  std::string_view name() const override { return "noisy"; }
  Precision precision() const override { return Precision::f32; }
  Allocator& allocator() override { return exact_->allocator(); }
  Matrix prepare(ConstView weight) override { return exact_->prepare(weight); }
  void embed(std::span<const int32_t> tokens, ConstView table, View y) override {
    exact_->embed(tokens, table, y);
  }
  void layer_norm(ConstView x, ConstView gain, ConstView bias, float eps, View y) override {
    exact_->layer_norm(x, gain, bias, eps, y);
  }
  void token_shift(ConstView x, ConstView mix, std::span<const int64_t> offsets, std::span<void* const> last,
                   std::span<const View> y) override {
    exact_->token_shift(x, mix, offsets, last, y);
  }
  void linear(std::span<const LinearCall> calls) override {
    for (LinearCall call : calls) {
      const Buffer noisy = with_noise(call.x);
      call.x = noisy;
      exact_->linear(std::span(&call, 1));
    }
  }
  void wkv7_operands(const Wkv7Operands& call) override { exact_->wkv7_operands(call); }
  void wkv7(const Wkv7Call& call) override { exact_->wkv7(call); }
  void wkv7_output(const Wkv7Output& call) override { exact_->wkv7_output(call); }
  void kv_append(ConstView k, ConstView v, std::span<const int64_t> offsets,
                 std::span<const KvChunks> kv) override {
    exact_->kv_append(with_noise(k), with_noise(v), offsets, kv);
  }
  void chunk_attention(const ChunkAttention& call) override { exact_->chunk_attention(call); }
  void gather_rows(ConstView x, std::span<const int64_t> rows, View y) override {
    exact_->gather_rows(x, rows, y);
  }
  void upload(std::span<const std::byte> host, void* device) override { exact_->upload(host, device); }
  void download(const void* device, std::span<std::byte> host) override { exact_->download(device, host); }

 private:
  Buffer with_noise(ConstView x) {
    constexpr int kSignificantBits = 8;
    Buffer noisy(DType::f32, x.shape());
    for (int64_t i = 0; i < x.elements(); ++i) {
      const float value = x.as<float>()[i];
      const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53 - 0.5;
      const double unit = value == 0 ? 0 : std::ldexp(1.0, std::ilogb(value) + 1 - kSignificantBits);
      noisy.as<float>()[i] = static_cast<float>(value + uniform * unit);
    }
    return noisy;
  }

  std::unique_ptr<Ops> exact_;
  std::mt19937_64 random_;
};

}  // namespace

std::shared_ptr<Ops> make_noisy_ops(uint64_t seed) { return std::make_shared<NoisyOps>(seed); }

}  // namespace rwkvx::test
