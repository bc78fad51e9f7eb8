#include <array>
#include <vector>

#include "ops/reference/backward.h"

namespace rwkvx::reference {
namespace {
constexpr int64_t N = kHeadSize;
}

void wkv7_operands_backward(const Wkv7Operands& op, const Wkv7OperandsGradients& g) {
  const double log_scale = -std::exp(-0.5);  // w = exp(log_scale · σ(d))
  const int64_t rows = op.k.dim(0), width = op.k.dim(1);
  const bool first = !op.value_gate;
  for (int64_t t = 0; t < rows; ++t) {
    const bool reset = !op.reset.empty() && op.reset[static_cast<size_t>(t)] != 0;
    for (int64_t head = 0; head < width; head += N) {
      double norm = 0;
      for (int64_t c = head; c < head + N; ++c) {
        const double z = at(op.k, t, c) * at(op.k_k, c);
        norm += z * z;
      }
      const bool clamped = std::sqrt(norm) < 1e-12;
      norm = clamped ? 1e-12 : std::sqrt(norm);
      // κ and its gradient, from a = −κ (zero at a reset) and b = κ η.
      std::array<double, N> kappa, dkappa, rate;
      double along = 0;  // κ · dκ
      for (int64_t c = head; c < head + N; ++c) {
        const auto n = static_cast<size_t>(c - head);
        kappa[n] = at(op.k, t, c) * at(op.k_k, c) / norm;
        rate[n] = sigmoid(at(op.a0, c) + at(op.rate, t, c));
        dkappa[n] = at(g.db, t, c) * rate[n] - (reset ? 0 : at(g.da, t, c));
        along += kappa[n] * dkappa[n];
      }
      for (int64_t c = head; c < head + N; ++c) {
        const auto n = static_cast<size_t>(c - head);
        const double k = at(op.k, t, c), k_k = at(op.k_k, c), k_a = at(op.k_a, c), dk_out = at(g.dk, t, c);
        const double dz = (dkappa[n] - (clamped ? 0 : kappa[n] * along)) / norm;
        const double drate = (at(g.db, t, c) * kappa[n] + dk_out * k * k_a) * rate[n] * (1 - rate[n]);
        const double decay = sigmoid(at(op.w0, c) + at(op.decay, t, c));
        const double w = std::exp(log_scale * decay);
        const double ddecay = reset ? 0 : at(g.dw, t, c) * w * log_scale * decay * (1 - decay);
        const double dv = at(g.dv, t, c);
        add_to_parameter(g.dk_k, c, dz * k);
        add_to_parameter(g.dk_a, c, dk_out * k * (rate[n] - 1));
        add_to_parameter(g.da0, c, drate);
        add_to_parameter(g.dw0, c, ddecay);
        put(g.drate, t, c, drate);
        put(g.ddecay, t, c, ddecay);
        put(g.dk_in, t, c, dk_out * (1 + (rate[n] - 1) * k_a) + dz * k_k);
        if (first) {
          put(g.dv_in, t, c, dv + at(g.dv_first, t, c));
          continue;
        }
        const double gate = sigmoid(at(op.v0, c) + at(op.value_gate, t, c));
        const double dgate = dv * (at(op.v_first, t, c) - at(op.v, t, c)) * gate * (1 - gate);
        add_to_parameter(g.dv0, c, dgate);
        put(g.dvalue_gate, t, c, dgate);
        put(g.dv_in, t, c, dv * (1 - gate));
        put(g.dv_first, t, c, at(g.dv_first, t, c) + dv * gate);
      }
    }
  }
}

namespace {

using State = std::vector<double>;  // [N, N]

/// The states before each of the rows begin .. end, and behind the last.
std::vector<State> states_of(const Wkv7Call& op, int64_t h, int64_t begin, int64_t end, State state) {
  std::vector<State> states{state};
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t i = 0; i < N; ++i) {
      double* row = &state[static_cast<size_t>(i * N)];
      double removed = 0;
      for (int64_t j = 0; j < N; ++j) removed += row[j] * at(op.a, t, h * N + j);
      for (int64_t j = 0; j < N; ++j) {
        const int64_t c = h * N + j;
        row[j] = row[j] * at(op.w, t, c) + removed * at(op.b, t, c) + at(op.v, t, h * N + i) * at(op.k, t, c);
      }
    }
    states.push_back(state);
  }
  return states;
}

/// One token: `d` is the gradient of the state behind it and becomes that of the state before it.
void step_backward(const Wkv7Call& op, const Wkv7Gradients& g, int64_t t, int64_t h, const State& before,
                   const State& after, State& d) {
  const auto c = [&](int64_t n) { return h * N + n; };
  std::array<double, N> removed{}, dremoved{};  // u = S a; the gradient of u is G b
  for (int64_t i = 0; i < N; ++i) {
    double dv = 0;
    for (int64_t j = 0; j < N; ++j) {
      const auto e = static_cast<size_t>(i * N + j);
      d[e] += at(g.dy, t, c(i)) * at(op.r, t, c(j));
      removed[static_cast<size_t>(i)] += before[e] * at(op.a, t, c(j));
      dremoved[static_cast<size_t>(i)] += d[e] * at(op.b, t, c(j));
      dv += d[e] * at(op.k, t, c(j));
    }
    put(g.dv, t, c(i), at(g.dv, t, c(i)) + dv);
  }
  for (int64_t j = 0; j < N; ++j) {
    double dr = 0, dw = 0, dk = 0, da = 0, db = 0;
    for (int64_t i = 0; i < N; ++i) {
      const auto e = static_cast<size_t>(i * N + j), row = static_cast<size_t>(i);
      dr += after[e] * at(g.dy, t, c(i));
      dw += d[e] * before[e];
      dk += d[e] * at(op.v, t, c(i));
      da += before[e] * dremoved[row];
      db += d[e] * removed[row];
      d[e] = d[e] * at(op.w, t, c(j)) + dremoved[row] * at(op.a, t, c(j));
    }
    put(g.dr, t, c(j), at(g.dr, t, c(j)) + dr);
    put(g.dk, t, c(j), at(g.dk, t, c(j)) + dk);
    put(g.dw, t, c(j), dw);
    put(g.da, t, c(j), da);
    put(g.db, t, c(j), db);
  }
}

}  // namespace

void wkv7_backward(const Wkv7Call& op, const Wkv7Gradients& g) {
  const int64_t heads = op.r.dim(1) / N;
  const DType real = op.r.dtype();
  State d(N * N), first(N * N);
  int64_t intervals_before = 0;
  for (size_t s = 0; s + 1 < op.offsets.size(); ++s) {
    const int64_t begin = op.offsets[s], end = op.offsets[s + 1];
    const int64_t intervals = (end - begin + kWkv7Interval - 1) / kWkv7Interval;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t e = 0; e < N * N; ++e) {
        d[static_cast<size_t>(e)] = g.dstates.empty() ? 0 : load(g.dstates[s], real, h * N * N + e);
      }
      for (int64_t i = intervals - 1; i >= 0; --i) {
        for (int64_t e = 0; e < N * N; ++e) {
          first[static_cast<size_t>(e)] = at(op.kept, ((intervals_before + i) * heads + h) * N * N + e);
        }
        const int64_t from = begin + i * kWkv7Interval, to = std::min(from + kWkv7Interval, end);
        const auto states = states_of(op, h, from, to, first);
        for (int64_t t = to - 1; t >= from; --t) {
          const auto at_row = static_cast<size_t>(t - from);
          step_backward(op, g, t, h, states[at_row], states[at_row + 1], d);
        }
      }
      if (g.dstates.empty()) continue;
      for (int64_t e = 0; e < N * N; ++e) {
        store(g.dstates[s], real, h * N * N + e, d[static_cast<size_t>(e)]);
      }
    }
    intervals_before += intervals;
  }
}

void wkv7_output_backward(const Wkv7Output& op, const Wkv7OutputGradients& g) {
  std::array<double, N> dnormal, dx;
  for (int64_t t = 0; t < op.x.dim(0); ++t) {
    for (int64_t head = 0; head < op.x.dim(1); head += N) {
      const Moments m = moments(op.x, t, head, N, op.eps);
      double bonus = 0, dbonus = 0;
      for (int64_t c = head; c < head + N; ++c) {
        bonus += at(op.r, t, c) * at(op.k, t, c) * at(op.r_k, c);
        dnormal[static_cast<size_t>(c - head)] = at(g.dy, t, c) * at(op.g, t, c);
        dbonus += dnormal[static_cast<size_t>(c - head)] * at(op.v, t, c);
      }
      normalize_backward(
          op.x, t, head, N, op.gain, op.eps,
          [&](int64_t c) { return dnormal[static_cast<size_t>(c - head)]; }, g.dgain, g.dbias,
          [&](int64_t c, double value) { dx[static_cast<size_t>(c - head)] = value; });
      for (int64_t c = head; c < head + N; ++c) {
        const double normal = (at(op.x, t, c) - m.mean) * m.scale;
        const double ungated = normal * at(op.gain, c) + at(op.bias, c) + bonus * at(op.v, t, c);
        const double r = at(op.r, t, c), k = at(op.k, t, c), r_k = at(op.r_k, c), dy = at(g.dy, t, c);
        add_to_parameter(g.dr_k, c, dbonus * r * k);
        put(g.dg, t, c, dy * ungated);
        put(g.dr, t, c, dbonus * k * r_k);
        put(g.dk, t, c, dbonus * r * r_k);
        put(g.dv, t, c, bonus * dnormal[static_cast<size_t>(c - head)]);
        put(g.dx, t, c, dx[static_cast<size_t>(c - head)]);
      }
    }
  }
}

}  // namespace rwkvx::reference
