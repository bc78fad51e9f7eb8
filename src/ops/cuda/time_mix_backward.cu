#include <algorithm>
#include <array>
#include <cstdint>

#include "base/assert.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/training_parts.h"

/// Sixteen threads have a head's channels, four each, for a piece of the rows; sums over the rows stay in
/// registers until the end of the piece.
namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 128, kBlocks = 4;  // of a multiprocessor
constexpr int kOperandSums = 5, kOutputSums = 3;

/// Four channels as an array, so that loops are unrolled over them.
struct Four {
  float x[4];
};
__device__ __forceinline__ Four load(const float* p) {
  const float4 v = load4(p);
  return {{v.x, v.y, v.z, v.w}};
}
__device__ __forceinline__ void store(float* p, const Four& v) {
  store4(p, make_float4(v.x[0], v.x[1], v.x[2], v.x[3]));
}
/// Over the channels of the head; all its threads get the sum.
__device__ __forceinline__ float head_sum(float x) {
#pragma unroll
  for (int lanes = 8; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

struct Piece {
  int64_t rows, length;  // all; of a piece
  int width;
  float* partials;  // [gridDim.y, parameters, width] or null
};

/// Of the parameters, behind the last row.
template <int kParameters>
__device__ __forceinline__ void store_sums(const Piece& piece, const Four (&sums)[kParameters], int column) {
  if (piece.partials == nullptr) return;
  float* to = piece.partials + static_cast<int64_t>(blockIdx.y) * kParameters * piece.width + column;
#pragma unroll
  for (int i = 0; i < kParameters; ++i) store(to + static_cast<int64_t>(i) * piece.width, sums[i]);
}

struct OperandsBackward {
  const float *decay, *rate, *value_gate, *k, *v, *v_first;
  const float *w0, *a0, *v0, *k_k, *k_a;
  const float *dw, *dk, *dv, *da, *db;
  float *ddecay, *drate, *dvalue_gate, *dk_in, *dv_in, *dv_first;
  const uint8_t* reset;  // or null
};

/// `kFirst`: the block whose v is v_first.
template <bool kFirst>
__global__ void __launch_bounds__(kThreads, kBlocks)
    operands_backward_kernel(const __grid_constant__ OperandsBackward op, Piece piece) {
  constexpr float kLogScale = -0.60653065971263342f;  // −e^(−1/2)
  allow_next_kernel();
  wait_for_previous_kernel();
  const int own = 4 * static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const bool valid = own < piece.width;
  const int c = valid ? own : 0;
  const Four w0 = load(op.w0 + c), a0 = load(op.a0 + c), k_k = load(op.k_k + c), k_a = load(op.k_a + c);
  Four v0{};
  if (!kFirst) v0 = load(op.v0 + c);
  Four sums[kOperandSums] = {};  // of w0, a0, v0, k_k, k_a
  const int64_t begin = blockIdx.y * piece.length, end = min(begin + piece.length, piece.rows);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * piece.width + c;
    // Everything is read before anything is written: results may lie where gradients of outputs lay.
    const Four k = load(op.k + at), rate = load(op.rate + at), decay = load(op.decay + at);
    const Four dw = load(op.dw + at), dk = load(op.dk + at), dv = load(op.dv + at);
    const Four da = load(op.da + at), db = load(op.db + at), dv_first = load(op.dv_first + at);
    Four v{}, v_first{}, value_gate{};
    if (!kFirst) {
      v = load(op.v + at);
      v_first = load(op.v_first + at);
      value_gate = load(op.value_gate + at);
    }
    const float kept = op.reset != nullptr && op.reset[row] != 0 ? 0.0f : 1.0f;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float z = k.x[i] * k_k.x[i];
      squares += z * z;
    }
    const float length = sqrtf(head_sum(squares));
    const bool clamped = length < 1e-12f;
    const float over = 1.0f / fmaxf(length, 1e-12f);
    Four kappa, eta, dkappa;
    float along = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      kappa.x[i] = k.x[i] * k_k.x[i] * over;
      eta.x[i] = sigmoid(a0.x[i] + rate.x[i]);
      dkappa.x[i] = db.x[i] * eta.x[i] - (kept != 0 ? da.x[i] : 0.0f);
      along += kappa.x[i] * dkappa.x[i];
    }
    along = head_sum(along);
    if (clamped) along = 0;
    Four ddecay, drate, dvalue_gate{}, dk_in, dv_in, sent{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float dz = (dkappa.x[i] - kappa.x[i] * along) * over, learned = eta.x[i] - 1;
      const float dk_k_a = dk.x[i] * k.x[i];
      drate.x[i] = (db.x[i] * kappa.x[i] + dk_k_a * k_a.x[i]) * eta.x[i] * (1 - eta.x[i]);
      const float speed = sigmoid(w0.x[i] + decay.x[i]), w = expf(kLogScale * speed);
      ddecay.x[i] = kept != 0 ? dw.x[i] * w * kLogScale * speed * (1 - speed) : 0.0f;
      dk_in.x[i] = dk.x[i] * (1 + learned * k_a.x[i]) + dz * k_k.x[i];
      if (kFirst) {
        dv_in.x[i] = dv.x[i] + dv_first.x[i];
      } else {
        const float gate = sigmoid(v0.x[i] + value_gate.x[i]);
        dvalue_gate.x[i] = dv.x[i] * (v_first.x[i] - v.x[i]) * gate * (1 - gate);
        dv_in.x[i] = dv.x[i] * (1 - gate);
        sent.x[i] = dv_first.x[i] + dv.x[i] * gate;
      }
      sums[0].x[i] += ddecay.x[i];
      sums[1].x[i] += drate.x[i];
      sums[2].x[i] += dvalue_gate.x[i];
      sums[3].x[i] += dz * k.x[i];
      sums[4].x[i] += dk_k_a * learned;
    }
    if (!valid) continue;
    store(op.ddecay + at, ddecay);
    store(op.drate + at, drate);
    store(op.dk_in + at, dk_in);
    store(op.dv_in + at, dv_in);
    if (kFirst) continue;
    store(op.dvalue_gate + at, dvalue_gate);
    store(op.dv_first + at, sent);
  }
  if (valid) store_sums(piece, sums, c);
}

struct OutputBackward {
  const float *x, *r, *k, *v, *g, *dy;
  const float *r_k, *gain, *bias;
  float *dx, *dr, *dk, *dv, *dg;
  float eps;
};

__global__ void __launch_bounds__(kThreads, kBlocks)
    output_backward_kernel(const __grid_constant__ OutputBackward op, Piece piece) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int own = 4 * static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const bool valid = own < piece.width;
  const int c = valid ? own : 0;
  const Four r_k = load(op.r_k + c), gain = load(op.gain + c), bias = load(op.bias + c);
  Four sums[kOutputSums] = {};  // of r_k, gain, bias
  const int64_t begin = blockIdx.y * piece.length, end = min(begin + piece.length, piece.rows);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * piece.width + c;
    // dy may lie where a result goes.
    const Four x = load(op.x + at), r = load(op.r + at), k = load(op.k + at);
    const Four v = load(op.v + at), g = load(op.g + at), dy = load(op.dy + at);
    Four d;  // of what the gate multiplies
    float total = 0, bonus = 0, dbonus = 0, mean_d = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      d.x[i] = dy.x[i] * g.x[i];
      total += x.x[i];
      bonus += r.x[i] * k.x[i] * r_k.x[i];
      dbonus += d.x[i] * v.x[i];
      mean_d += gain.x[i] * d.x[i];
    }
    const float mean = head_sum(total) * (1.0f / kHead);
    bonus = head_sum(bonus);
    dbonus = head_sum(dbonus);
    mean_d = head_sum(mean_d) * (1.0f / kHead);
    Four normal;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      normal.x[i] = x.x[i] - mean;
      squares += normal.x[i] * normal.x[i];
    }
    const float scale = 1.0f / sqrtf(head_sum(squares) * (1.0f / kHead) + op.eps);
    float mean_normal = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      normal.x[i] *= scale;
      mean_normal += gain.x[i] * d.x[i] * normal.x[i];
    }
    mean_normal = head_sum(mean_normal) * (1.0f / kHead);
    Four dx, dr, dk, dv, dg;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      dx.x[i] = scale * (gain.x[i] * d.x[i] - mean_d - normal.x[i] * mean_normal);
      dr.x[i] = dbonus * k.x[i] * r_k.x[i];
      dk.x[i] = dbonus * r.x[i] * r_k.x[i];
      dv.x[i] = bonus * d.x[i];
      dg.x[i] = dy.x[i] * (normal.x[i] * gain.x[i] + bias.x[i] + bonus * v.x[i]);
      sums[0].x[i] += dbonus * r.x[i] * k.x[i];
      sums[1].x[i] += d.x[i] * normal.x[i];
      sums[2].x[i] += d.x[i];
    }
    if (!valid) continue;
    store(op.dx + at, dx);
    store(op.dr + at, dr);
    store(op.dk + at, dk);
    store(op.dv + at, dv);
    store(op.dg + at, dg);
  }
  if (valid) store_sums(piece, sums, c);
}

const float* reals(const ConstView& x) { return static_cast<const float*>(x.data()); }
float* reals(const View& x) { return static_cast<float*>(x.data()); }

/// Runs run(grid, piece), then adds what it summed to `sums`.
template <size_t kParameters, typename Run>
void in_pieces(Gpu& gpu, const ConstView& like, const std::array<float*, kParameters>& sums, const Run& run) {
  const int64_t rows = like.dim(0), width = like.dim(1);
  RWKVX_ASSERT(like.dtype() == DType::f32 && width % kHead == 0);
  const unsigned column_blocks = blocks_for(width, 4 * kThreads);
  const RowPieces pieces(gpu, rows, column_blocks, kBlocks);
  Piece piece{rows, pieces.rows, static_cast<int>(width), nullptr};
  if (std::any_of(sums.begin(), sums.end(), [](const float* sum) { return sum != nullptr; })) {
    const Shape shape{pieces.count, static_cast<int64_t>(kParameters), width};
    piece.partials = gpu.scratch().take(DType::f32, shape).template as<float>();
  }
  run(Grid{{column_blocks, static_cast<unsigned>(pieces.count)}, kThreads}, piece);
  if (piece.partials != nullptr) add_parameter_sums(gpu, piece.partials, pieces.count, width, sums);
}

}  // namespace

void wkv7_operands_backward(Gpu& gpu, const Wkv7Operands& forward, const Wkv7OperandsGradients& g) {
  if (forward.k.dim(0) == 0) return;
  const Arena::Scope scope(gpu.scratch());
  OperandsBackward op{};
  op.decay = reals(forward.decay);
  op.rate = reals(forward.rate);
  op.value_gate = reals(forward.value_gate);
  op.k = reals(forward.k);
  op.v = reals(forward.v);
  op.v_first = reals(forward.v_first);
  op.w0 = reals(forward.w0);
  op.a0 = reals(forward.a0);
  op.v0 = reals(forward.v0);
  op.k_k = reals(forward.k_k);
  op.k_a = reals(forward.k_a);
  op.dw = reals(g.dw);
  op.dk = reals(g.dk);
  op.dv = reals(g.dv);
  op.da = reals(g.da);
  op.db = reals(g.db);
  op.ddecay = reals(g.ddecay);
  op.drate = reals(g.drate);
  op.dvalue_gate = reals(g.dvalue_gate);
  op.dk_in = reals(g.dk_in);
  op.dv_in = reals(g.dv_in);
  op.dv_first = reals(g.dv_first);
  op.reset = scratch_copy(gpu, forward.reset);
  const bool first = !forward.value_gate;
  const std::array sums{reals(g.dw0), reals(g.da0), first ? nullptr : reals(g.dv0), reals(g.dk_k),
                        reals(g.dk_a)};
  in_pieces(gpu, forward.k, sums, [&](const Grid& grid, const Piece& piece) {
    launch(gpu, grid, first ? operands_backward_kernel<true> : operands_backward_kernel<false>, op, piece);
  });
}

void wkv7_output_backward(Gpu& gpu, const Wkv7Output& forward, const Wkv7OutputGradients& g) {
  if (forward.x.dim(0) == 0) return;
  const Arena::Scope scope(gpu.scratch());
  OutputBackward op{};
  op.x = reals(forward.x);
  op.r = reals(forward.r);
  op.k = reals(forward.k);
  op.v = reals(forward.v);
  op.g = reals(forward.g);
  op.dy = reals(g.dy);
  op.r_k = reals(forward.r_k);
  op.gain = reals(forward.gain);
  op.bias = reals(forward.bias);
  op.dx = reals(g.dx);
  op.dr = reals(g.dr);
  op.dk = reals(g.dk);
  op.dv = reals(g.dv);
  op.dg = reals(g.dg);
  op.eps = forward.eps;
  const std::array sums{reals(g.dr_k), reals(g.dgain), reals(g.dbias)};
  in_pieces(gpu, forward.x, sums, [&](const Grid& grid, const Piece& piece) {
    launch(gpu, grid, output_backward_kernel, op, piece);
  });
}

}  // namespace rwkvx::cuda
