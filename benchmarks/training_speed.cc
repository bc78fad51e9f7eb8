// Speed and memory of training steps (forward, backward, AdamW) of a random model on random bytes. For each
// step it prints tokens per second, the FLOP rate as 6 · parameters of matrices · tokens, processor time and
// peak memory. `training_speed --help` lists the options.
#include <fmt/format.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <string>

#include "base/error.h"
#include "formats/catalog.h"
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

struct Options {
  int64_t context = 4096, batch = 1;
  std::string precision = "f32";
  ModelConfig config{.layers = 6,
                     .sparse_blocks = 2,
                     .channels = 256,
                     .vocab = 256,
                     .decay_rank = 32,
                     .rate_rank = 32,
                     .value_rank = 32,
                     .gate_rank = 64,
                     .sparse_after = {}};
  double activation_gb = -1;  // below 0: the default of training
  std::string save;
  int threads = 0, steps = 3;
};

/// Weights and data as safetensors, for another program to do the same step.
void save(const std::string& path, const Parameters& parameters, std::span<const int32_t> tokens,
          std::span<const int32_t> targets) {
  std::vector<TensorToWrite> all;
  for (const Parameters::Tensor& tensor : parameters.tensors()) {
    all.push_back(
        {tensor.spec.name, DType::f32, tensor.spec.shape, [&] { return ConstView(tensor.master); }});
  }
  const auto ids = [&](const char* name, std::span<const int32_t> of) {
    const Shape shape{static_cast<int64_t>(of.size())};
    all.push_back({name, DType::i32, shape, [=] { return ConstView(of.data(), DType::i32, shape); }});
  };
  ids("tokens", tokens);
  ids("targets", targets);
  write_safetensors(path, all, {});
}

void run(const Options& run_options) {
  const ModelConfig& config = run_options.config;
  const Precision precision = run_options.precision == "bf16" ? Precision::bf16 : Precision::f32;
  const auto ops = make_ops({"cpu", precision, run_options.threads});
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
  const int64_t rows = run_options.batch * run_options.context;
  for (int64_t i = 0; i < rows; ++i) {
    tokens.push_back(any(random));
    targets.push_back(any(random));
  }
  std::vector<int64_t> offsets;
  for (int64_t row = 0; row <= rows; row += run_options.context) offsets.push_back(row);
  TrainingOptions options;
  if (run_options.activation_gb >= 0) {
    options.activation_bytes = static_cast<uint64_t>(1e9 * run_options.activation_gb);
  }
  if (!run_options.save.empty()) save(run_options.save, parameters, tokens, targets);
  std::vector<double> rates;
  for (int step = 1; step <= run_options.steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    const double processor = processor_seconds();
    parameters.zero_gradients();
    const TrainingResult result =
        model.forward_backward({.tokens = tokens, .targets = targets, .offsets = offsets}, options);
    ops->training().adamw(tensors, {.step = step, .rate = 1e-4});
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const double rate = static_cast<double>(rows) / took.count();
    rates.push_back(rate);
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    fmt::print(
        "step {}: loss {:.5f}, {:.0f} tokens/s, {:.1f} GFLOP/s, {:.0f} us of processors a token, peak {:.2f} "
        "GB\n",
        step, result.loss, rate, 6 * static_cast<double>(matrices) * rate / 1e9,
        1e6 * (processor_seconds() - processor) / static_cast<double>(rows),
        static_cast<double>(usage.ru_maxrss) / 1e6);
    std::fflush(stdout);
  }
  std::sort(rates.begin(), rates.end());
  const double median = rates[rates.size() / 2];
  fmt::print("median: {:.0f} tokens/s, {:.1f} GFLOP/s, {} parameters of matrices\n", median,
             6 * static_cast<double>(matrices) * median / 1e9, matrices);
}

}  // namespace
}  // namespace rwkvx

int main(int argc, char** argv) {
  rwkvx::Options options;
  rwkvx::ModelConfig& config = options.config;
  CLI::App app("Speed and memory of training steps of a random model on random bytes");
  app.option_defaults()->always_capture_default();
  app.add_option("context", options.context, "tokens of a sequence")->check(CLI::PositiveNumber);
  app.add_option("--batch", options.batch, "sequences")->check(CLI::PositiveNumber);
  app.add_option("--precision", options.precision)->check(CLI::IsMember({"f32", "bf16"}));
  app.add_option("--layers", config.layers, "RWKV-7 blocks");
  app.add_option("--sparse-blocks", config.sparse_blocks);
  app.add_option("--channels", config.channels);
  app.add_option("--vocab-size", config.vocab);
  app.add_option("--chunk-size", config.chunk_size);
  app.add_option("--chunk-top-k", config.top_k);
  app.add_option("--activation-gb", options.activation_gb,
                 "memory for activations of blocks; -1: the default of training");
  app.add_option("--save", options.save, "a file for the weights and the data of the first step");
  app.add_option("--threads", options.threads, "0: one for each core");
  app.add_option("--steps", options.steps)->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  config.ffn = 4 * config.channels;
  try {
    rwkvx::run(options);
  } catch (const std::exception& e) {
    fmt::print(stderr, "training_speed: {}\n", e.what());
    return 1;
  }
}
