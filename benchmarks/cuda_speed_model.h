#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "cuda_speed_data.h"
#include "cuda_speed_meter.h"
#include "model/block.h"
#include "model/model.h"
#include "model/training_model.h"
#include "ops/training.h"
#include "training/initialize.h"

/// Whole models with random weights: prompts, decoding, training steps.
namespace rwkvx {

struct BenchModel {
  int64_t layers = 32, sparse_blocks = 8, channels = 2560, vocab = 65536, chunk = 2048, top_k = 3;
  int64_t segment = 0;
  double kv_gb = 48;
  KvOptions kv;  // where keys and values lie

  int64_t ffn() const { return 4 * channels; }
  ModelConfig config(int64_t with_layers, int64_t with_sparse, int64_t with_channels) const {
    ModelConfig config = model_sizes(with_layers, with_channels, vocab, with_sparse);
    config.chunk_size = chunk;
    config.top_k = top_k;
    return config;
  }
};

/// As Session::segment_rows(), which needs a whole model.
inline int64_t session_segment(const Ops& ops, const BenchModel& model) {
  const Ops::Pieces most = ops.pieces();
  const int64_t rows = most.bytes / (4 * (24 * model.channels + model.ffn())) / 64 * 64;
  return std::clamp<int64_t>(rows, 64, most.rows);
}

/// A checkpoint in memory whose blocks share their weights, so that it takes little of the host's.
class RandomCheckpoint {
 public:
  static std::shared_ptr<const Checkpoint> make(const ModelConfig& config, DType type) {
    RandomCheckpoint build(type);
    auto checkpoint = std::make_shared<Checkpoint>();
    checkpoint->config = config;
    checkpoint->chunk_settings_recorded = true;
    checkpoint->catalog.path = "random weights";
    for (const TensorSpec& spec : tensor_list(config)) checkpoint->catalog.add(spec.name, build.tensor(spec));
    checkpoint->catalog.keep(build.memory_);
    return checkpoint;
  }

 private:
  struct Memory {
    std::map<std::tuple<int64_t, int64_t, size_t>, HostMatrix> matrices;
    std::map<std::string, Buffer> vectors;
    std::map<std::string, size_t> variants;  // of what a matrix is for
  };
  explicit RandomCheckpoint(DType type) : type_(type) {}

  ConstView tensor(const TensorSpec& spec) {
    // "blocks.12.att.key.weight" -> "key.weight": queries, keys and values of a block must differ.
    const std::string_view name = spec.name;
    const size_t last = name.rfind('.');
    const size_t before = last == std::string_view::npos ? last : name.rfind('.', last - 1);
    const std::string kind(name.ends_with("weight") || name.ends_with("bias") ? name.substr(before + 1)
                                                                              : name.substr(last + 1));
    if (!is_matrix(spec.role)) return vector(spec, kind);
    // The embedding and the head may share theirs.
    const bool table = spec.role == Role::embedding || spec.role == Role::head;
    const size_t variant =
        table ? 0 : memory_->variants.emplace(kind, memory_->variants.size() + 1).first->second;
    const auto key = std::tuple(spec.shape[0], spec.shape[1], variant);
    const auto found = memory_->matrices.find(key);
    if (found != memory_->matrices.end()) return found->second.view();
    const DType type = spec.role == Role::low_rank ? DType::bf16 : type_;
    const auto begin = static_cast<int64_t>(variant) * 65'537;
    return memory_->matrices.emplace(key, HostMatrix(type, spec.shape[0], spec.shape[1], begin))
        .first->second.view();
  }

  ConstView vector(const TensorSpec& spec, const std::string& kind) {
    Buffer& buffer = memory_->vectors[kind + spec.shape.str()];
    if (buffer) return buffer;
    buffer = Buffer(DType::f32, spec.shape);
    float middle = 0, deviation = 0.1f;
    if (spec.role == Role::norm && kind.ends_with("weight")) middle = 1;
    if (spec.role == Role::mix) middle = 0.5f, deviation = 0.2f;
    if (spec.role == Role::offset) middle = kind == "w0" ? -2.0f : 0.0f, deviation = 0.5f;
    if (spec.role == Role::scale) middle = kind == "k_k" ? 0.85f : 1.0f;
    const size_t begin = std::hash<std::string>()(kind) % 4096;
    for (int64_t i = 0; i < spec.shape.elements(); ++i) {
      buffer.as<float>()[i] = middle + deviation * normal_values()[begin + static_cast<size_t>(i)];
    }
    return buffer;
  }

  DType type_;
  std::shared_ptr<Memory> memory_ = std::make_shared<Memory>();
};

/// The largest magnitude, and whether all are finite. Logits are real.
inline void describe_logits(Ops& ops, ConstView logits, Fields& fields) {
  std::vector<float> values(static_cast<size_t>(logits.elements()));
  ops.download(logits.data(), std::as_writable_bytes(std::span(values)));
  double largest = 0;
  bool finite = true;
  for (const float x : values) {
    finite = finite && std::isfinite(x);
    largest = std::max(largest, std::abs(static_cast<double>(x)));
  }
  fields.truth("finite", finite).number("largest_logit", largest);
}

/// Random tokens.
inline std::vector<int32_t> random_tokens(int64_t count, int64_t vocab) {
  std::vector<int32_t> tokens;
  std::mt19937 random(7);
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(vocab - 1));
  for (int64_t i = 0; i < count; ++i) tokens.push_back(any(random));
  return tokens;
}

struct ModelSpeed {
  Ops& ops;
  std::shared_ptr<Ops> shared_ops;
  Meter& meter;
  RandomData& data;
  const BenchModel& sizes;
  std::span<const int64_t> contexts, batches;
  int64_t piece;

  void run(int64_t sparse_blocks, DType type, bool prompts) const {
    const ModelConfig config = sizes.config(sizes.layers, sparse_blocks, sizes.channels);
    const double begin = meter.elapsed();
    const Model model(RandomCheckpoint::make(config, type), shared_ops);
    ops.synchronize();
    const One one{model, type, weight_bytes(model.checkpoint())};
    Fields fields = fields_of(one, "model loaded");
    fields.number("weight_gb", 1e-9 * one.weight_bytes).number("seconds", meter.elapsed() - begin).print();

    Arena arena(ops.allocator());
    const int64_t longest = contexts.back(), short_enough = 131072;
    {
      State state = model.new_state();
      forward(model, state, random_tokens(std::min(sizes.segment, longest), config.vocab), {}, arena);
    }
    Prompts before;
    if (prompts) {
      for (const int64_t T : contexts) {
        if (T <= short_enough) prompt(one, T, arena, before);
      }
    }
    meter.guarded("decode", [&] { decode(one, contexts.front(), 1, arena); });
    if (sparse_blocks > 0) meter.guarded("decode", [&] { decode(one, longest, 1, arena); });
    for (const int64_t batch : batches) {
      meter.guarded("decode", [&] { decode(one, contexts.front(), batch, arena); });
    }
    if (!prompts || sparse_blocks == 0) return;
    for (const int64_t T : contexts) {
      if (T > short_enough) prompt(one, T, arena, before);
    }
  }

  /// A transformer of as many blocks, with full attention: one of them, the others would take as long.
  void dense(int64_t most) const {
    const int64_t blocks = sizes.layers + sizes.sparse_blocks;
    ModelConfig config = sizes.config(1, 1, sizes.channels);
    config.vocab = 256;
    const LoadedWeights loaded(RandomCheckpoint::make(config, DType::bf16), ops);
    const SparseBlockWeights& w = loaded.weights().sparse[0];
    Arena arena(ops.allocator());
    Buffer x(ops.real(), {sizes.segment, config.channels}, ops.allocator());
    Buffer shift(ops.real(), {config.channels}, ops.allocator());
    data.fill(x, 1);
    double before = 0;
    for (const int64_t T : contexts) {
      if (T > most) continue;
      std::optional<KvStore> store;
      const auto step = [&](int64_t rows) {
        const std::array<int64_t, 2> offsets{0, rows};
        KvStore* const stores = &*store;
        void* const shifts = shift.view().data();
        sparse_block(ops, w, {offsets}, std::span(&stores, 1), std::span(&shifts, 1),
                     std::numeric_limits<int32_t>::max(), x.view().rows(0, rows), arena);
      };
      const auto all = [&] {
        store.emplace(config.heads(), config.chunk_size, 0, KvOptions{},
                      std::make_shared<KvMemory>(KvOptions{}, ops), ops);
        for (int64_t done = 0; done < T; done += sizes.segment) step(std::min(sizes.segment, T - done));
      };
      const auto fields = [&](std::string_view what) {
        Fields f;
        f.text("what", what)
            .number("context", T)
            .number("blocks", blocks)
            .number("measured_blocks", int64_t{1});
        return f;
      };
      const double share = 1 / static_cast<double>(blocks);
      if (!meter.fits(fields("dense prompt"), 0.5 + 30 * before)) continue;
      meter.measure(fields("dense prompt"), all,
                    {{"tokens_per_s_of_all_blocks", share * static_cast<double>(T)}});
      before = meter.last_seconds;
      meter.measure(fields("dense decode"), [&] { step(1); }, {{"tokens_per_s_of_all_blocks", share}});
    }
  }

 private:
  struct One {
    const Model& model;
    DType type;
    double weight_bytes;  // that a token reads
  };
  struct Prompts {
    double seconds = 0;
    int64_t tokens = 0;
  };

  static double weight_bytes(const Checkpoint& checkpoint) {
    double bytes = 0;
    for (const CatalogTensor& tensor : checkpoint.catalog.tensors()) {
      if (tensor.name != "emb.weight") bytes += static_cast<double>(tensor.data.bytes());
    }
    return bytes;
  }

  static Fields fields_of(const One& one, std::string_view what) {
    const ModelConfig& c = one.model.config();
    Fields fields;
    fields.text("what", what).text("type", name(one.type)).number("layers", c.layers);
    fields.number("sparse_blocks", c.sparse_blocks).number("channels", c.channels);
    return fields;
  }

  KvOptions kv_for(const ModelConfig& config, int64_t tokens) const {
    KvOptions kv = sizes.kv;
    const DType usual = ops.precision() == Precision::bf16 ? DType::bf16 : ops.real();
    const double bytes = 2 * static_cast<double>(bytes_of(usual, config.channels)) *
                         static_cast<double>(tokens * config.sparse_blocks);
    kv.dtype = bytes > 1e9 * sizes.kv_gb ? DType::i8 : usual;
    return kv;
  }

  /// As a session does: segment after segment, logits [1, V] of the last token if wanted.
  void forward(const Model& model, State& state, std::span<const int32_t> tokens, View logits,
               Arena& arena) const {
    for (size_t done = 0; done < tokens.size();) {
      const size_t n = std::min(static_cast<size_t>(sizes.segment), tokens.size() - done);
      const SequenceInput input{tokens.subspan(done, n), &state};
      done += n;
      const bool last = done == tokens.size() && logits;
      model.forward(std::span(&input, 1), last ? LogitsOf::last : LogitsOf::none, last ? logits : View(),
                    arena);
    }
  }

  void prompt(const One& one, int64_t T, Arena& arena, Prompts& before) const {
    const ModelConfig& config = one.model.config();
    const KvOptions kv = kv_for(config, T);
    Fields fields = fields_of(one, "prompt");
    fields.number("context", T).number("segment", sizes.segment).text("kv", name(*kv.dtype));
    fields.text("kv_policy", kv.policy_text());
    const double ratio = before.tokens > 0 ? static_cast<double>(T) / static_cast<double>(before.tokens) : 1;
    const double expected = 1.2 * ratio * before.seconds;
    if (!meter.fits(fields, expected + 0.5)) return;
    const std::vector<int32_t> tokens = random_tokens(T, config.vocab);
    try {
      Buffer logits(ops.real(), {1, config.vocab}, ops.allocator());
      std::optional<State> state;
      const double seconds = meter.seconds_of(
          [&] {
            state.reset();  // first, so that its memory serves the next
            state.emplace(config, kv, ops);
            forward(one.model, *state, tokens, logits, arena);
          },
          expected > 1);
      describe_logits(ops, logits, fields);
      meter.report(fields, seconds, {{"tokens_per_s", static_cast<double>(T)}});
      before = {seconds, T};
    } catch (const std::exception& e) {
      fields.text("error", e.what()).print();
    }
  }

  /// From a context of random keys, values and states.
  void decode(const One& one, int64_t T, int64_t batch, Arena& arena) const {
    const ModelConfig& config = one.model.config();
    const KvOptions kv = kv_for(config, T * batch);
    Fields fields = fields_of(one, "decode");
    fields.number("context", T).number("batch", batch).text("kv", name(*kv.dtype));
    fields.text("kv_policy", kv.policy_text());
    if (!meter.fits(fields, 2)) return;
    std::vector<State> states;
    double more = 0;  // bytes of states and keys that a step reads and writes
    for (int64_t s = 0; s < batch; ++s) {
      State& state = states.emplace_back(config, kv, ops);
      data.fill(state.recurrent(), 0.3f);
      state.set_position(T);
      more += 2 * static_cast<double>(state.recurrent().bytes());
      if (config.sparse_blocks == 0) continue;
      append_random(ops, data, std::span(&state.kv(0), static_cast<size_t>(config.sparse_blocks)), T, piece);
      const int64_t seen = std::min(T, config.top_k * config.chunk_size);
      more +=
          static_cast<double>(config.sparse_blocks * seen) * static_cast<double>(state.kv(0).token_bytes());
    }
    const std::vector<int32_t> tokens = random_tokens(997 + batch, config.vocab);
    size_t turn = 0;
    Buffer logits(ops.real(), {batch, config.vocab}, ops.allocator());
    const auto step = [&] {
      std::vector<SequenceInput> inputs;
      for (size_t s = 0; s < states.size(); ++s) {
        inputs.push_back({std::span(tokens).subspan(turn % 997 + s, 1), &states[s]});
      }
      ++turn;
      one.model.forward(inputs, LogitsOf::last, logits, arena);
    };
    Meter::Rates rates{{"tokens_per_s", static_cast<double>(batch)},
                       {"weights_gb_per_s", 1e-9 * one.weight_bytes},
                       {"all_gb_per_s", 1e-9 * (one.weight_bytes + more)}};
    if (meter.bandwidth > 0) {
      rates.emplace_back("weights_of_copy", 1e-9 * one.weight_bytes / meter.bandwidth);
      rates.emplace_back("all_of_copy", 1e-9 * (one.weight_bytes + more) / meter.bandwidth);
    }
    const double seconds = meter.seconds_of(step);
    describe_logits(ops, logits, fields);
    meter.report(fields, seconds, rates);
    // As when tokens are drawn from the logits: the host waits for each step.
    std::vector<float> host(static_cast<size_t>(logits.view().elements()));
    const double with_logits = meter.seconds_of([&] {
      step();
      ops.download(logits.view().data(), std::as_writable_bytes(std::span(host)));
    });
    Fields waiting = fields_of(one, "decode, logits downloaded");
    waiting.number("context", T).number("batch", batch).text("kv", name(*kv.dtype));
    meter.report(waiting, with_logits, {{"tokens_per_s", static_cast<double>(batch)}});
  }
};

struct TrainingSpeed {
  Ops& ops;
  Meter& meter;
  RandomData& data;

  /// A step for each size of slices.
  void run(const ModelConfig& config, int64_t context, std::span<const int64_t> slices,
           uint64_t activation_bytes) const {
    int64_t matrices = 0;
    for (const TensorSpec& spec : tensor_list(config)) {
      if (is_matrix(spec.role) && spec.role != Role::embedding) matrices += spec.shape.elements();
    }
    const double flop = 6 * static_cast<double>(matrices) * static_cast<double>(context);
    Fields fields;
    fields.text("what", "training step").number("layers", config.layers);
    fields.number("sparse_blocks", config.sparse_blocks).number("channels", config.channels);
    fields.number("vocab", config.vocab).number("context", context).number("matrix_parameters", matrices);
    if (!meter.fits(fields, 3 + 2 * flop / 1e14)) return;

    Parameters parameters(config, ops);
    std::vector<Buffer> moments;
    std::vector<AdamWTensor> tensors;
    double memory = 0;
    for (const Parameters::Tensor& tensor : parameters.tensors()) {
      const bool matrix = is_matrix(tensor.spec.role);
      const float deviation = matrix ? 1 / std::sqrt(static_cast<float>(tensor.spec.shape.dim(-1))) : 0.1f;
      const bool gain = tensor.spec.role == Role::norm && tensor.spec.name.ends_with("weight");
      const std::array<View, 2> both{tensor.master, tensor.weight};
      const bool one = tensor.master.data() == tensor.weight.data();
      data.fill_alike(std::span(both).first(one ? 1 : 2), deviation, gain ? 1.0f : 0.0f);
      AdamWTensor with{tensor.master, tensor.gradient, {}, {}, tensor.weight};
      for (View* moment : {&with.moment1, &with.moment2}) {
        moments.emplace_back(ops.real(), tensor.spec.shape, ops.allocator());
        *moment = moments.back();
        memory += static_cast<double>(moment->bytes());
      }
      memory += static_cast<double>(tensor.master.bytes() + tensor.gradient.bytes() +
                                    (one ? 0 : tensor.weight.bytes()));
      tensors.push_back(with);
    }
    TrainingModel model(parameters);
    const std::vector<int32_t> tokens = random_tokens(context + 1, config.vocab);
    const std::array<int64_t, 2> offsets{0, context};
    const auto rows = static_cast<size_t>(context);
    int64_t steps = 0;
    for (const int64_t slice : slices) {
      Fields line(fields);
      line.number("slice_rows", slice);
      TrainingOptions options;
      options.activation_bytes = activation_bytes;
      options.slice_rows = slice;
      double loss = 0, forward_backward = 0;
      const auto step = [&] {
        parameters.zero_gradients();
        const double begin = meter.elapsed();
        const TrainingResult result = model.forward_backward({.tokens = std::span(tokens).first(rows),
                                                              .targets = std::span(tokens).subspan(1),
                                                              .offsets = offsets},
                                                             options);
        ops.synchronize();
        forward_backward = meter.elapsed() - begin;
        loss = result.loss;
        ops.training().adamw(tensors, {.step = ++steps, .rate = 1e-5});
      };
      if (!meter.fits(line, 3 + 2 * flop / 1e14)) return;
      try {
        const double seconds = meter.seconds_of(step);
        line.number("loss", loss).number("forward_backward_milliseconds", 1e3 * forward_backward);
        line.number("parameters_gb", 1e-9 * memory);
        line.number("activations_gb", 1e-9 * static_cast<double>(model.activation_bytes()));
        meter.report(line, seconds,
                     {{"tokens_per_s", static_cast<double>(context)}, {"tflop_per_s", 1e-12 * flop}});
      } catch (const std::exception& e) {
        line.text("error", e.what()).print();
      }
    }
  }
};

}  // namespace rwkvx
