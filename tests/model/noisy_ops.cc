#include "model/noisy_ops.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "ops/forwarding_ops.h"

namespace rwkvx::test {
namespace {

/// Errors of one rounding to bfloat16.
class RoundingNoise {
 public:
  explicit RoundingNoise(uint64_t seed) : random_(seed) {}

  Buffer on(ConstView x) {
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

 private:
  std::mt19937_64 random_;
};

class NoisyOps final : public ForwardingOps {
 public:
  explicit NoisyOps(uint64_t seed)
      : ForwardingOps(make_ops({"reference", Precision::f32, 1})), noise_(seed) {}

  std::string_view name() const override { return "noisy"; }
  void linear(std::span<const LinearCall> calls) override {
    for (LinearCall call : calls) {
      const Buffer noisy = noise_.on(call.x);
      call.x = noisy;
      to().linear(std::span(&call, 1));
    }
  }
  void kv_append(ConstView k, ConstView v, std::span<const int64_t> offsets,
                 std::span<const KvChunks> kv) override {
    to().kv_append(noise_.on(k), noise_.on(v), offsets, kv);
  }

 private:
  RoundingNoise noise_;
};

class NoisyRecurrenceOps final : public ForwardingOps {
 public:
  explicit NoisyRecurrenceOps(uint64_t seed)
      : ForwardingOps(make_ops({"reference", Precision::f32, 1})), noise_(seed) {}

  void wkv7(const Wkv7Call& call) override {
    const Buffer r = noise_.on(call.r), k = noise_.on(call.k), v = noise_.on(call.v), a = noise_.on(call.a),
                 b = noise_.on(call.b);
    Wkv7Call noisy = call;
    noisy.r = r;
    noisy.k = k;
    noisy.v = v;
    noisy.a = a;
    noisy.b = b;
    to().wkv7(noisy);
  }

 private:
  RoundingNoise noise_;
};

class NoisyKvOps final : public ForwardingOps {
 public:
  explicit NoisyKvOps(uint64_t seed)
      : ForwardingOps(make_ops({"reference", Precision::f32, 1})), random_(seed) {}
  void kv_append(ConstView k, ConstView v, std::span<const int64_t> offsets,
                 std::span<const KvChunks> kv) override {
    to().kv_append(with_noise(k), with_noise(v), offsets, kv);
  }

 private:
  Buffer with_noise(ConstView x) {
    Buffer noisy(DType::f32, x.shape());
    for (int64_t row = 0; row < x.elements(); row += kHeadSize) {
      float most = 0;
      for (int64_t n = row; n < row + kHeadSize; ++n) most = std::max(most, std::abs(x.as<float>()[n]));
      for (int64_t n = row; n < row + kHeadSize; ++n) {
        const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53 - 0.5;
        noisy.as<float>()[n] = x.as<float>()[n] + static_cast<float>(uniform) * most / 127;
      }
    }
    return noisy;
  }

  std::mt19937_64 random_;
};

}  // namespace

std::shared_ptr<Ops> make_noisy_kv_ops(uint64_t seed) { return std::make_shared<NoisyKvOps>(seed); }
std::shared_ptr<Ops> make_noisy_ops(uint64_t seed) { return std::make_shared<NoisyOps>(seed); }
std::shared_ptr<Ops> make_noisy_recurrence_ops(uint64_t seed) {
  return std::make_shared<NoisyRecurrenceOps>(seed);
}

}  // namespace rwkvx::test
