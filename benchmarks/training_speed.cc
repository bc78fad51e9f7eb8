// Speed and memory of training steps (forward, backward, AdamW) of a random model on random bytes:
//   training_speed CONTEXT [f32|bf16] [LAYERS SPARSE CHANNELS] [THREADS] [STEPS]
// prints tokens per second of each step, the FLOP rate as 6 · parameters of matrices · tokens, and peak
// memory.
#include <fmt/format.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <random>
#include <string>

#include "base/error.h"
#include "model/training_model.h"
#include "ops/training.h"

namespace rwkvx {
namespace {

double processor_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// Normal with the usual deviations; enough to keep every activation alive.
void fill(Parameters& parameters, std::mt19937& random) {
  std::normal_distribution<float> normal;
  for (const Parameters::Tensor& tensor : parameters.tensors()) {
    Buffer values(DType::f32, tensor.spec.shape);
    const bool matrix = is_matrix(tensor.spec.role);
    const float deviation = matrix ? 1 / std::sqrt(static_cast<float>(tensor.spec.shape.dim(-1))) : 0.1f;
    const float middle = tensor.spec.role == Role::norm && tensor.spec.name.ends_with("weight") ? 1.0f : 0.0f;
    for (int64_t i = 0; i < values.view().elements(); ++i) {
      values.as<float>()[i] = middle + deviation * normal(random);
    }
    parameters.set(tensor, values);
  }
}

void run(int64_t context, Precision precision, const ModelConfig& config, int threads, int steps) {
  const auto ops = make_ops({"cpu", precision, threads});
  Parameters parameters(config, *ops);
  std::mt19937 random(1);
  fill(parameters, random);
  std::vector<Buffer> moments;
  std::vector<AdamWTensor> tensors;
  int64_t matrices = 0;
  for (const Parameters::Tensor& tensor : parameters.tensors()) {
    if (is_matrix(tensor.spec.role) && tensor.spec.role != Role::embedding) {
      matrices += tensor.spec.shape.elements();
    }
    AdamWTensor one{tensor.master, tensor.gradient, {}, {}, tensor.weight};
    for (View* moment : {&one.moment1, &one.moment2}) {
      moments.emplace_back(ops->real(), tensor.spec.shape, ops->allocator());
      *moment = moments.back();
    }
    tensors.push_back(one);
  }
  TrainingModel model(parameters);
  std::vector<int32_t> tokens, targets;
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(config.vocab - 1));
  for (int64_t i = 0; i < context; ++i) {
    tokens.push_back(any(random));
    targets.push_back(any(random));
  }
  const std::vector<int64_t> offsets{0, context};
  for (int step = 1; step <= steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    const double processor = processor_seconds();
    parameters.zero_gradients();
    const TrainingResult result =
        model.forward_backward({.tokens = tokens, .targets = targets, .offsets = offsets}, {});
    ops->training().adamw(tensors, {.step = step, .rate = 1e-4});
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const double rate = static_cast<double>(context) / took.count();
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    fmt::print(
        "step {}: loss {:.3f}, {:.0f} tokens/s, {:.1f} GFLOP/s, {:.0f} us of processors a token, peak {:.2f} "
        "GB\n",
        step, result.loss, rate, 6 * static_cast<double>(matrices) * rate / 1e9,
        1e6 * (processor_seconds() - processor) / static_cast<double>(context),
        static_cast<double>(usage.ru_maxrss) / 1e6);
  }
}

}  // namespace
}  // namespace rwkvx

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr,
               "usage: training_speed CONTEXT [f32|bf16] [LAYERS SPARSE CHANNELS] [THREADS] [STEPS]\n");
    return 2;
  }
  try {
    const auto number = [&](int i, int64_t otherwise) { return i < argc ? std::stoll(argv[i]) : otherwise; };
    rwkvx::ModelConfig config;
    config.layers = number(3, 6);
    config.sparse_blocks = number(4, 2);
    config.channels = number(5, 256);
    config.ffn = 4 * config.channels;
    config.vocab = 256;
    config.decay_rank = config.rate_rank = config.value_rank = 32;
    config.gate_rank = 64;
    const bool f32 = argc > 2 && std::string(argv[2]) == "f32";
    rwkvx::run(number(1, 4096), f32 ? rwkvx::Precision::f32 : rwkvx::Precision::bf16, config,
               static_cast<int>(number(6, 0)), static_cast<int>(number(7, 3)));
  } catch (const std::exception& e) {
    fmt::print(stderr, "training_speed: {}\n", e.what());
    return 1;
  }
}
