#include <vector>

#include "ops/reference/backward.h"

namespace rwkvx::reference {

void layer_norm_backward(const LayerNormBackward& call) {
  const int64_t width = call.x.dim(1);
  std::vector<double> dx(static_cast<size_t>(width));
  for (int64_t t = 0; t < call.x.dim(0); ++t) {
    normalize_backward(
        call.x, t, 0, width, call.gain, call.eps, [&](int64_t c) { return at(call.dy, t, c); }, call.dgain,
        call.dbias, [&](int64_t c, double value) { dx[static_cast<size_t>(c)] = value; });
    for (int64_t c = 0; c < width; ++c) {
      const double before = call.add ? at(call.dx, t, c) : 0;
      put(call.dx, t, c, before + dx[static_cast<size_t>(c)]);
    }
  }
}

void token_shift_backward(const TokenShiftBackward& call) {
  const int64_t width = call.x.dim(1);
  const ShiftNeighbours& around = call.around;
  for (size_t s = 0; s + 1 < call.offsets.size(); ++s) {
    const int64_t begin = call.offsets[s], end = call.offsets[s + 1];
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t c = 0; c < width; ++c) {
        double before = t > begin ? at(call.x, t - 1, c) : 0;
        if (t == 0 && around.before) before = at(around.before, c);
        double dx = t + 1 == call.x.dim(0) && around.from_after ? at(around.from_after, c) : 0;
        for (size_t m = 0; m < call.dy.size(); ++m) {
          const int64_t mix = static_cast<int64_t>(m) * width + c;
          dx += at(call.dy[m], t, c) * (1 - at(call.mix, mix));
          if (t + 1 < end) dx += at(call.dy[m], t + 1, c) * at(call.mix, mix);
          add_to_parameter(call.dmix, mix, at(call.dy[m], t, c) * (before - at(call.x, t, c)));
        }
        put(call.dx, t, c, dx);
      }
    }
  }
  for (int64_t c = 0; c < width && around.to_before; ++c) {
    double sent = 0;
    for (size_t m = 0; m < call.dy.size(); ++m) {
      sent += at(call.dy[m], 0, c) * at(call.mix, static_cast<int64_t>(m) * width + c);
    }
    put(around.to_before, c, sent);
  }
}

namespace {

/// The derivative of an activation in terms of its result.
double slope(Activation activation, double y) {
  switch (activation) {
    case Activation::none:
      return 1;
    case Activation::tanh:
      return 1 - y * y;
    case Activation::sigmoid:
      return y * (1 - y);
    case Activation::relu_squared:
      return 2 * std::sqrt(y);
  }
  return 1;
}

}  // namespace

void linear_backward(const LinearBackward& call) {
  const int64_t rows = call.dy.dim(0), in = call.w->in(), out = call.w->out();
  std::vector<double> du(static_cast<size_t>(rows * out));
  for (int64_t i = 0; i < rows * out; ++i) {
    du[static_cast<size_t>(i)] =
        at(call.dy, i) * (call.activation == Activation::none ? 1 : slope(call.activation, at(call.y, i)));
  }
  if (call.dx) {
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = 0; i < in; ++i) {
        double sum = call.add ? at(call.dx, t, i) : 0;
        for (int64_t o = 0; o < out; ++o) {
          sum += du[static_cast<size_t>(t * out + o)] * at(call.w->weight, o, i);
        }
        put(call.dx, t, i, sum);
      }
    }
  }
  if (call.dw) {
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        double sum = at(call.dw, o, i);
        for (int64_t t = 0; t < rows; ++t) sum += du[static_cast<size_t>(t * out + o)] * at(call.x, t, i);
        put(call.dw, o, i, sum);
      }
    }
  }
}

}  // namespace rwkvx::reference
