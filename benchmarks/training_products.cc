// The rate that oneDNN itself reaches, with all its threads, on the products of a training step in float32:
// whole matrices, nothing else in between. What training_speed says in GFLOP/s is to be compared with this.
//   training_products [ROWS] [CHANNELS] [ROUNDS]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <dnnl.hpp>
#include <vector>

namespace {

struct Shape {
  const char* name;
  int64_t in, out;
  int64_t count;  // in the model
};

/// Seconds of c [m, n] = a [m, k] · b [k, n], either of which may lie transposed: the median of some.
double seconds(int64_t m, int64_t k, int64_t n, bool a_transposed, bool b_transposed, int rounds) {
  std::vector<float> a(static_cast<size_t>(m * k), 0.5f), b(static_cast<size_t>(k * n), 0.25f),
      c(static_cast<size_t>(m * n));
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    dnnl_sgemm(a_transposed ? 'T' : 'N', b_transposed ? 'T' : 'N', m, n, k, 1, a.data(), a_transposed ? m : k,
               b.data(), b_transposed ? k : n, 0, c.data(), n);
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t rows = argc > 1 ? std::atoll(argv[1]) : 4096, C = argc > 2 ? std::atoll(argv[2]) : 256;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 15;
  // The model of training_speed: 6 RWKV-7 blocks, 2 sparse ones, a vocabulary of 256.
  const Shape shapes[] = {{"projections", C, C, 6 * 4 + 2 * 4},
                          {"channel mix, key", C, 4 * C, 8},
                          {"channel mix, value", 4 * C, C, 8},
                          {"rank 32, down", C, 32, 17},
                          {"rank 32, up", 32, C, 17},
                          {"rank 64, down", C, 64, 6},
                          {"rank 64, up", 64, C, 6},
                          {"head", C, 256, 1}};
  double flops = 0, time = 0;
  for (const Shape& s : shapes) {
    const double one = 2 * static_cast<double>(rows * s.in * s.out), times = static_cast<double>(s.count);
    const double y = seconds(rows, s.in, s.out, false, true, rounds),
                 dx = seconds(rows, s.out, s.in, false, false, rounds),
                 dw = seconds(s.out, rows, s.in, true, false, rounds);
    fmt::print("{:20} {:5} to {:5}: y {:6.1f}  dx {:6.1f}  dw {:6.1f} GFLOP/s\n", s.name, s.in, s.out,
               one / y / 1e9, one / dx / 1e9, one / dw / 1e9);
    flops += 3 * one * times;
    time += (y + dx + dw) * times;
  }
  fmt::print("a step's products: {:.1f} GFLOP/s, {:.0f} us a token\n", flops / time / 1e9,
             1e6 * time / static_cast<double>(rows));
}
