// The rate that oneDNN itself reaches, in THREADS at once, each with matrices of its own, on the products of
// a training step in float32: whole matrices, nothing else in between. What training_speed says in GFLOP/s is
// to be compared with this.
//   training_products [THREADS] [ROWS] [CHANNELS] [ROUNDS]
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <dnnl.hpp>
#include <thread>
#include <vector>

namespace {

struct Shape {
  const char* name;
  int64_t in, out;
  int64_t count;  // in the model
};

/// c [m, n] = a [m, k] · b [k, n], either of which may lie transposed.
struct Product {
  int64_t m, k, n;
  bool a_transposed, b_transposed;
};

/// Seconds in one thread, while the others do the same: the median.
double seconds(const Product& p, int threads, int rounds) {
  std::vector<double> times;
  const auto work = [&](std::vector<double>* to) {
    omp_set_num_threads(1);  // oneDNN's team in this thread
    std::vector<float> a(static_cast<size_t>(p.m * p.k), 0.5f), b(static_cast<size_t>(p.k * p.n), 0.25f),
        c(static_cast<size_t>(p.m * p.n));
    for (int i = 0; i < rounds; ++i) {
      const auto start = std::chrono::steady_clock::now();
      dnnl_sgemm(p.a_transposed ? 'T' : 'N', p.b_transposed ? 'T' : 'N', p.m, p.n, p.k, 1, a.data(),
                 p.a_transposed ? p.m : p.k, b.data(), p.b_transposed ? p.k : p.n, 0, c.data(), p.n);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      if (to != nullptr) to->push_back(took.count());
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, nullptr);
  work(&times);
  for (std::thread& other : others) other.join();
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int i, int64_t otherwise) { return i < argc ? std::atoll(argv[i]) : otherwise; };
  const int threads = static_cast<int>(number(1, 2)), rounds = static_cast<int>(number(4, 15));
  const int64_t rows = number(2, 4096), C = number(3, 256);
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
    const double one = 2.0 * threads * static_cast<double>(rows * s.in * s.out),
                 times = static_cast<double>(s.count);
    const double y = seconds({rows, s.in, s.out, false, true}, threads, rounds),
                 dx = seconds({rows, s.out, s.in, false, false}, threads, rounds),
                 dw = seconds({s.out, rows, s.in, true, false}, threads, rounds);
    fmt::print("{:20} {:5} to {:5}: y {:6.1f}  dx {:6.1f}  dw {:6.1f} GFLOP/s\n", s.name, s.in, s.out,
               one / y / 1e9, one / dx / 1e9, one / dw / 1e9);
    flops += 3 * one * times;
    time += (y + dx + dw) * times;
  }
  fmt::print("a step's products: {:.1f} GFLOP/s, {:.0f} us a token\n", flops / time / 1e9,
             1e6 * time / static_cast<double>(threads * rows));
}
