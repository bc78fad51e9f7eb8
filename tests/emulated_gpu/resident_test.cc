// Programs of resident.h beside the operations that they replace, on the emulated GPU.

#include "ops/cuda/resident_program.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <deque>
#include <random>

#include "base/error.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/matrix.h"
#include "tensor/convert.h"

namespace rwkvx::cuda {
namespace {

class ResidentTest : public testing::Test {
 protected:
  Buffer random(Shape shape, float deviation = 1) {
    Buffer buffer(DType::f32, shape, gpu_.allocator());
    std::normal_distribution<float> normal(0, deviation);
    for (int64_t i = 0; i < shape.elements(); ++i) buffer.as<float>()[i] = normal(random_);
    return buffer;
  }
  Buffer active(Shape shape) { return Buffer(DType::bf16, shape, gpu_.allocator()); }
  Matrix matrix(int64_t out, int64_t in, DType type, bool sparse_input = false) {
    const Buffer values = random({out, in}, 0.1f);
    weights_.emplace_back(type, Shape{out, in}, gpu_.allocator());
    convert(values, weights_.back());
    return {weights_.back(), prepare_matrix(gpu_, weights_.back(), sparse_input)};
  }
  Buffer random_active(Shape shape) {
    Buffer buffer = active(shape);
    convert(random(shape), buffer);
    return buffer;
  }
  Buffer copy(const Buffer& of) {
    Buffer to(of.view().dtype(), of.view().shape(), gpu_.allocator());
    memcpy(to.view().data(), of.view().data(), of.view().bytes());
    return to;
  }
  static double apart(const Buffer& a, const Buffer& b) {
    double most = 0, largest = 0;
    for (int64_t i = 0; i < a.view().elements(); ++i) {
      most = std::max<double>(most, std::abs(a.as<float>()[i] - b.as<float>()[i]));
      largest = std::max<double>(largest, std::abs(b.as<float>()[i]));
    }
    return most / largest;
  }
  std::mt19937 random_{5};
  Gpu gpu_{0};
  std::deque<Buffer> weights_;
};

void run_program(Gpu& gpu, ResidentComposer& composer) {
  const auto program = composer.finish();
  for (int i = 0; i < 2; ++i) resident::run(gpu, *program);  // the second finds what the first left
}

/// Rows that are longer than a slot, and several in one; outputs for each block, and fewer than there are blocks.
TEST_F(ResidentTest, Products) {
  for (const DType type : {DType::bf16, DType::q8_0, DType::q4_0, DType::q4_k, DType::q5_k}) {
    for (const auto& [out, in] : std::vector<std::array<int64_t, 2>>{
             {3, 256}, {70, 512}, {64, 2560}, {33, 5120}, {20, 10240}, {17, 13312}}) {
      SCOPED_TRACE(fmt::format("{} {} x {}", name(type), out, in));
      const Matrix w = matrix(out, in, type), small = matrix(40, 96, DType::bf16);
      const Buffer x = random_active({1, in}), other = random_active({1, 96});
      Buffer y(DType::f32, {1, out}, gpu_.allocator()), want = random({1, out});
      Buffer z(DType::f32, {1, 40}, gpu_.allocator()), want_z(DType::f32, {1, 40}, gpu_.allocator());
      const std::array<LinearCall, 2> direct{{{x, &w, want, Activation::tanh}, {other, &small, want_z}}};
      linear(gpu_, direct);
      const std::array<LinearCall, 2> calls{{{x, &w, y, Activation::tanh}, {other, &small, z}}};
      ResidentComposer composer(gpu_);
      composer.linear(calls);
      run_program(gpu_, composer);
      EXPECT_LE(apart(y, want), 1e-5);
      EXPECT_LE(apart(z, want_z), 1e-5);
    }
  }
}

TEST_F(ResidentTest, AddsToWhatIsThere) {
  const Matrix w = matrix(96, 256, DType::bf16);
  const Buffer x = random_active({1, 256});
  Buffer y = random({1, 96}), want = copy(y);
  for (int i = 0; i < 2; ++i) linear(gpu_, std::array<LinearCall, 1>{{{x, &w, want, Activation::none, true}}});
  ResidentComposer composer(gpu_);
  composer.linear(std::array<LinearCall, 1>{{{x, &w, y, Activation::none, true}}});
  run_program(gpu_, composer);
  EXPECT_LE(apart(y, want), 1e-5);
}

/// With value rows in one slot and in two.
TEST_F(ResidentTest, ChannelMix) {
  for (const auto& [channels, hidden] :
       std::vector<std::array<int64_t, 2>>{{64, 96}, {256, 8}, {256, 1000}, {2560, 200}, {4096, 160}}) {
    SCOPED_TRACE(fmt::format("{} to {}", channels, hidden));
    const Matrix key = matrix(hidden, channels, DType::bf16), value = matrix(channels, hidden, DType::bf16, true);
    const Buffer gain = random({channels}), bias = random({channels}), mix = random({1, channels});
    Buffer x = random({1, channels}), last = random({1, channels}), normed = random({1, channels});
    Buffer mixed = active({1, channels}), middle = active({1, hidden});
    Buffer want = copy(x), want_last = copy(last);
    const std::array<int64_t, 2> offsets{0, 1};
    const auto all = [&](auto& ops, Buffer& residual, Buffer& kept) {
      void* const shift = kept.view().data();
      const View y = mixed;
      ops.norm_shift({.x = residual, .gain = gain, .bias = bias, .normed = normed, .mix = mix, .offsets = offsets,
                      .last = std::span(&shift, 1), .y = std::span(&y, 1)});
      ops.linear(std::array<LinearCall, 1>{{{mixed, &key, middle, Activation::relu_squared}}});
      ops.linear(std::array<LinearCall, 1>{{{middle, &value, residual, Activation::none, true}}});
    };
    struct Direct {
      Gpu& gpu;
      void norm_shift(const NormShift& call) { cuda::norm_shift(gpu, call); }
      void linear(std::span<const LinearCall> calls) { cuda::linear(gpu, calls); }
    } direct{gpu_};
    for (int i = 0; i < 2; ++i) all(direct, want, want_last);
    ResidentComposer composer(gpu_);
    all(composer, x, last);
    run_program(gpu_, composer);
    EXPECT_LE(apart(x, want), 1e-3);  // a rounding to bfloat16 may turn out otherwise
    EXPECT_LE(apart(last, want_last), 1e-3);
  }
}

/// What a program cannot be, or would have to read what is not written.
TEST_F(ResidentTest, OtherWorkIsRefused) {
  const Matrix w = matrix(64, 64, DType::bf16), narrow = matrix(64, 12, DType::bf16),
               halves = matrix(64, 64, DType::f16);
  const Buffer x = random_active({1, 64}), two = random_active({2, 64}), thin = random_active({1, 12});
  const Buffer gain = random({64});
  Buffer y(DType::f32, {2, 64}, gpu_.allocator()), normed = active({1, 64});
  const View one = y.view().rows(0, 1);
  const auto product = [&](const Matrix& m, ConstView from, View to) {
    ResidentComposer composer(gpu_);
    composer.linear(std::array<LinearCall, 1>{{{from, &m, to}}});
    composer.finish();
  };
  EXPECT_NO_THROW(product(w, x, one));
  EXPECT_THROW(product(w, two, y), CannotRecord);
  EXPECT_THROW(product(narrow, thin, one), CannotRecord);
  EXPECT_THROW(product(halves, x, one), CannotRecord);
  EXPECT_THROW(ResidentComposer(gpu_).finish(), CannotRecord);
  ResidentComposer composer(gpu_);
  composer.layer_norm(one, gain, gain, 1e-5f, normed);
  composer.linear(std::array<LinearCall, 1>{{{normed, &w, one}}});
  composer.linear(std::array<LinearCall, 1>{{{normed, &w, one}}});  // only the first product had it
  EXPECT_THROW(composer.finish(), CannotRecord);
}

}  // namespace
}  // namespace rwkvx::cuda
