#include "training/trainer.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/memory.h"
#include "base/random.h"
#include "model/training_model.h"
#include "training/answers.h"
#include "training/event_file.h"
#include "training/initialize.h"
#include "training/run_data.h"

namespace rwkvx {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSmoothing = 0.98;

std::unique_ptr<Ops> ops_for(const TrainConfig& config) {
  return make_ops({.backend = config.device,
                   .precision = config.precision == "bf16" ? Precision::bf16 : Precision::f32,
                   .threads = static_cast<int>(config.threads)});
}

bool trains(const TrainConfig& config, const TensorSpec& spec) {
  return config.stage != "align" || spec.name.starts_with("moba.");
}

TrainingBatch spans(const TrainBatch& batch) {
  return {batch.tokens, batch.targets, batch.offsets, batch.weights, batch.resets, batch.earlier};
}

/// Lines of JSON behind each other, flushed one by one.
class MetricsFile {
 public:
  explicit MetricsFile(const Path& path) : path_(path), file_(std::fopen(path.c_str(), "ab")) {
    if (file_ == nullptr) fail("cannot write {}: {}", path.string(), std::strerror(errno));
  }
  ~MetricsFile() { std::fclose(file_); }
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  void add(const std::string& line) {
    if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0)
      fail("cannot write {}: {}", path_.string(), std::strerror(errno));
  }

 private:
  Path path_;
  std::FILE* file_;
};

/// Those that the configuration names.
void choose_chunks(const TrainConfig& config, ModelConfig& model) {
  if (config.chunk_size > 0) model.chunk_size = config.chunk_size;
  if (config.chunk_top_k > 0) model.top_k = config.chunk_top_k;
}

/// What a run's checkpoints have fixed.
void refuse_another_model(const TrainConfig& saved, const TrainConfig& given) {
  const auto refuse = [](std::string_view flag, const auto& was, const auto& now) {
    if (was == now) return;
    throw UsageError(
        fmt::format("--{} {} is not what the run was started with, {}; start a new run in another --out",
                    flag, now, was));
  };
  refuse("layers", saved.layers, given.layers);
  refuse("channels", saved.channels, given.channels);
  refuse("sparse-blocks", saved.sparse_blocks, given.sparse_blocks);
  refuse("sparse-after", saved.sparse_after, given.sparse_after);
  refuse("vocab-size", saved.vocab_size, given.vocab_size);
  refuse("ffn", saved.ffn, given.ffn);
}

}  // namespace

class Trainer::Impl {
 public:
  Impl(const Path& path, const TrainConfig& configuration, const ModelConfig& model, const Path& mixture)
      : config(configuration),
        folder(path),
        ops(ops_for(config)),
        parameters(model, *ops, [&](const TensorSpec& spec) { return trains(config, spec); }),
        optimizer(parameters),
        network(parameters),
        data(config, model.vocab, mixture) {
    if (optimizer.moments().empty())
      fail("--stage align trains sparse blocks, and the model has none; rwkvx expand adds them");
    options.longce = parse_longce(config.longce);
    // Each batch has its own mean of the selection loss; a step has the mean of those.
    options.gate.weight = static_cast<float>(config.gate_loss / static_cast<double>(config.accumulate));
    options.gate.pointing = static_cast<float>(config.pointing_loss / static_cast<double>(config.accumulate));
    options.gate.samples = config.gate_rows;
    options.gate.by_weight = config.gate_by == "weights";
    options.activation_bytes = static_cast<uint64_t>(1e9 * config.activation_gb);
    options.slice_rows = ops->pieces().rows / 4;  // kSliceRows on CPUs; GPUs want longer ones
    if (config.recompute == "on") options.activation_bytes = 0;
    if (config.recompute == "off") options.activation_bytes = UINT64_MAX;
  }

  End run(const std::function<void(const StepReport&)>& report, const std::function<bool()>& stop) {
    folder.cut_metrics(progress.step);
    MetricsFile metrics(folder.metrics_file());
    EventFile events(folder.path(), progress.step);
    const int64_t first = progress.step;
    const Clock::time_point start = Clock::now();
    double evaluating = 0;
    while (progress.step < config.steps) {
      StepReport r;
      const Clock::time_point begin = Clock::now();
      if (!step(r, stop)) {
        if (saved_ != progress.step) save();
        return End::stopped;
      }
      const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
      const Clock::time_point end = Clock::now();
      r.tokens_per_second = static_cast<double>(tokens_of_step_) / std::max(1e-9, seconds(end - begin));
      // Phases differ in the tokens of a step.
      const auto tokens = [&](int64_t step) {
        return static_cast<double>(tokens_before(data.phases(), step));
      };
      const double each = (seconds(end - start) - evaluating) / (tokens(progress.step) - tokens(first));
      r.seconds_left = each * (tokens(config.steps) - tokens(progress.step));
      const bool last = progress.step == config.steps;
      if (last || progress.step % config.eval_every == 0) {
        evaluate(r);
        evaluating += seconds(Clock::now() - end);
      }
      r.progress = progress;
      r.steps = config.steps;
      r.peak_bytes = peak_resident_bytes();
      if (last || r.evaluated() || progress.step % config.log_every == 0) record(r, metrics, events);
      if (report) report(r);
      if (last || progress.step % config.save_every == 0) save();
    }
    return End::finished;
  }

  void save() {
    folder.save(progress, parameters, optimizer, config.keep);
    saved_ = progress.step;
  }

  TrainConfig config;
  RunFolder folder;
  std::unique_ptr<Ops> ops;
  Parameters parameters;
  Optimizer optimizer;
  TrainingModel network;
  RunData data;
  TrainingOptions options;
  TrainProgress progress;

 private:
  /// One update; false when it was stopped, and nothing has changed then.
  bool step(StepReport& r, const std::function<bool()>& stop) {
    std::vector<TrainBatch> batches(static_cast<size_t>(config.accumulate));
    uint64_t sample = progress.samples;
    double counted = 0, weight = 0;
    tokens_of_step_ = 0;
    const Phase& phase = data.phase(progress.step);
    for (TrainBatch& batch : batches) {
      for (int64_t i = 0; i < phase.batch; ++i) data.samples(progress.step).add(sample++, batch);
      counted += static_cast<double>(batch.counted());
      weight += batch.weight();
      tokens_of_step_ += batch.rows();
    }
    parameters.zero_gradients();
    // A weighted mean over the whole step. L2Wrap's is not weighted, and so not divided by the weights.
    if (!(counted > 0 && weight > 0)) counted = weight = 1;
    options.divisor = weight;
    options.l2wrap = static_cast<float>(config.l2wrap * (weight / counted));
    double gate_loss = 0, gate_hits = 0, pointing_loss = 0, pointing_hits = 0;
    AnswerCounts answers;
    const auto share = 1 / static_cast<double>(batches.size());
    for (size_t i = 0; i < batches.size(); ++i) {
      if (stop && stop()) return false;
      // Another choice of queries for each batch, the same when the run is resumed.
      options.gate.seed = Random(static_cast<uint64_t>(config.seed) ^ progress.samples << 16 ^ i).next();
      const TrainingResult result = network.forward_backward(spans(batches[i]), options);
      r.loss += result.loss;
      r.cross_entropy += result.cross_entropy * static_cast<double>(result.counted) / counted;
      count_answers(batches[i], result.hits, answers);
      gate_loss += result.gate_loss * share;
      gate_hits += result.gate_hits * share;
      pointing_loss += result.pointing_loss * share;
      pointing_hits += result.pointing_hits * share;
      if (!std::isfinite(result.loss)) stop_for(result, batches[i]);
    }
    if (options.gate.weight > 0 && parameters.config().sparse_blocks > 0) {
      r.gate_loss = gate_loss;
      r.gate_hits = gate_hits;
    }
    if (options.gate.pointing > 0 && parameters.config().sparse_blocks > 0) {
      r.pointing_loss = pointing_loss;
      r.pointing_hits = pointing_hits;
    }
    try {
      r.gradient_norm = optimizer.gradient_norm();
    } catch (const Error& error) {
      stop_with(error.what());
    }
    if (!answers.empty()) r.answers = sum_of(answers).share();
    r.context = phase.context;
    Schedule schedule = schedule_of(config);
    schedule.final *= phase.lr / schedule.peak;
    schedule.peak = phase.lr;
    r.rate = learning_rate(schedule, progress.step);
    optimizer.step({.step = progress.step + 1,
                    .rate = r.rate,
                    .beta1 = config.beta1,
                    .beta2 = config.beta2,
                    .eps = config.eps,
                    .decay = config.weight_decay,
                    .gradient_scale = config.clip > 0 && r.gradient_norm > config.clip
                                          ? config.clip / r.gradient_norm
                                          : 1.0});
    ++progress.step;
    progress.samples = sample;
    progress.tokens += static_cast<uint64_t>(tokens_of_step_);
    progress.smoothed_loss = kSmoothing * progress.smoothed_loss + (1 - kSmoothing) * r.loss;
    progress.smoothed_weight = kSmoothing * progress.smoothed_weight + (1 - kSmoothing);
    r.smoothed_loss = progress.smoothed_loss / progress.smoothed_weight;
    return true;
  }

  /// Says where the loss stopped being a number.
  [[noreturn]] void stop_for(const TrainingResult& result, const TrainBatch& batch) const {
    for (size_t i = 0; i < result.losses.size(); ++i) {
      if (!std::isfinite(result.losses[i]))
        stop_with(
            fmt::format("the loss of token {} of the batch (id {}), computed from the logits of head.weight, "
                        "is not finite",
                        i, batch.tokens[i]));
    }
    stop_with("the loss is not finite");
  }
  [[noreturn]] void stop_with(const std::string& what) const {
    const std::vector<int64_t> steps = folder.checkpoints();
    const std::string from =
        steps.empty() ? "there is no checkpoint yet: start anew with a lower --lr"
                      : fmt::format(
                            "the last checkpoint is {}: go on from it with rwkvx train --resume --out {} "
                            "--lr {:g}, or with a smaller --clip",
                            folder.checkpoint(steps.back()).string(), folder.path().string(), config.lr / 2);
    fail("step {}: {}; the step was not made; {}", progress.step + 1, what, from);
  }

  void evaluate(StepReport& r) {
    if (const TrainingData* held_out = data.held_out()) {
      double sum = 0, counted = 0;
      score(*held_out, held_out->epoch(), config.batch,
            [&](const TrainBatch& batch, const RowScores& scores) {
              for (const float loss : scores.losses) sum += static_cast<double>(loss);
              counted += static_cast<double>(batch.counted());
            });
      r.held_out = sum / std::max(1.0, counted);
    }
    const int64_t step = progress.step - 1;  // the phase of the step that was made
    for (const bool reset : {false, true}) {
      const TrainingData* questions = data.questions(step, reset);
      if (questions == nullptr) continue;
      AnswerCounts counts;
      score(*questions, static_cast<uint64_t>(config.eval_windows), data.phase(step).batch,
            [&](const TrainBatch& batch, const RowScores& scores) {
              count_answers(batch, scores.hits, counts);
            });
      if (counts.empty()) continue;
      (reset ? r.answers_after_reset : r.held_out_answers) = sum_of(counts).share();
      for (const auto& [source, count] : counts) {
        r.answers_by_source.emplace_back(
            fmt::format("{}/{}", reset ? "answers_after_reset" : "held_out_answers", data.source(source)),
            count.share());
      }
    }
  }

  /// Some of `epoch` samples, spread over all of them, `at_once` at a time.
  template <typename Take>
  void score(const TrainingData& samples, uint64_t epoch, int64_t at_once, Take take) {
    const uint64_t count = std::min<uint64_t>(static_cast<uint64_t>(config.eval_windows), epoch);
    TrainBatch batch;
    int64_t waiting = 0;
    for (uint64_t i = 0; i < count; ++i) {
      samples.add(i * epoch / count, batch);
      if (++waiting < at_once && i + 1 < count) continue;
      take(batch, network.scores(spans(batch)));
      batch.clear();
      waiting = 0;
    }
  }

  void record(const StepReport& r, MetricsFile& metrics, EventFile& events) const {
    std::vector<EventFile::Scalar> scalars{{"loss", r.loss},
                                           {"cross_entropy", r.cross_entropy},
                                           {"smoothed_loss", r.smoothed_loss},
                                           {"gradient_norm", r.gradient_norm},
                                           {"learning_rate", r.rate},
                                           {"tokens_per_second", r.tokens_per_second}};
    if (r.gate_loss) scalars.emplace_back("gate_loss", *r.gate_loss);
    if (r.gate_hits) scalars.emplace_back("gate_hits", *r.gate_hits);
    if (r.pointing_loss) scalars.emplace_back("pointing_loss", *r.pointing_loss);
    if (r.pointing_hits) scalars.emplace_back("pointing_hits", *r.pointing_hits);
    if (r.answers) scalars.emplace_back("answers", *r.answers);
    if (r.held_out) scalars.emplace_back("held_out_loss", *r.held_out);
    if (r.held_out_answers) scalars.emplace_back("held_out_answers", *r.held_out_answers);
    if (r.answers_after_reset) scalars.emplace_back("answers_after_reset", *r.answers_after_reset);
    scalars.insert(scalars.end(), r.answers_by_source.begin(), r.answers_by_source.end());
    nlohmann::ordered_json json{{"step", r.progress.step}, {"tokens", r.progress.tokens}};
    for (const auto& [name, value] : scalars) json[name] = value;
    json["peak_bytes"] = r.peak_bytes;
    metrics.add(json.dump() + "\n");
    events.add(r.progress.step, scalars);
  }

  int64_t saved_ = -1, tokens_of_step_ = 0;
};

Trainer::Trainer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Trainer::~Trainer() = default;

std::unique_ptr<Trainer> Trainer::start(const Path& path, const TrainConfig& given) {
  const TrainConfig config = resolved(given);
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig model;
  if (config.load.empty()) {
    model = model_sizes(config.layers, config.channels, config.vocab_size, config.sparse_blocks);
    if (config.ffn > 0) model.ffn = config.ffn;
    choose_chunks(config, model);
    place_sparse_blocks(model, config.sparse_after);
  } else {
    CheckpointOptions options;
    if (config.chunk_size > 0) options.chunk_size = config.chunk_size;
    if (config.chunk_top_k > 0) options.top_k = config.chunk_top_k;
    checkpoint = open_checkpoint(config.load, options);
    model = checkpoint->config;
  }
  auto impl = std::make_unique<Impl>(path, config, model, config.mixture);
  if (checkpoint != nullptr) {
    impl->parameters.load(*checkpoint);
  } else {
    for (const Parameters::Tensor& tensor : impl->parameters.tensors()) {
      Buffer values(DType::f32, tensor.spec.shape);
      initialize(tensor.spec, model, static_cast<uint64_t>(config.seed),
                 std::span(values.as<float>(), static_cast<size_t>(tensor.spec.shape.elements())),
                 config.embedding_init);
      impl->parameters.set(tensor, values);
    }
  }
  impl->folder.create(config);
  if (!config.mixture.empty()) impl->folder.keep_mixture(config.mixture);
  return std::unique_ptr<Trainer>(new Trainer(std::move(impl)));
}

std::unique_ptr<Trainer> Trainer::resume(const Path& path, const TrainConfig& given) {
  const TrainConfig config = resolved(given);
  const RunFolder folder(path);
  const std::vector<int64_t> steps = folder.checkpoints();
  if (steps.empty())
    fail("{}: there is no checkpoint in it to go on from; start the run anew", path.string());
  // As the run began, unless another one is named.
  const bool same = config.mixture == folder.config().mixture;
  const Path mixture = same ? folder.mixture_file() : Path(config.mixture);
  refuse_another_model(folder.config(), config);
  ModelConfig model = folder.model_config(steps.back());
  choose_chunks(config, model);
  auto impl = std::make_unique<Impl>(path, config, model, mixture);
  impl->progress = folder.load(steps.back(), impl->parameters, impl->optimizer);
  folder.replace_config(config);
  if (!same && !config.mixture.empty()) folder.keep_mixture(config.mixture);
  return std::unique_ptr<Trainer>(new Trainer(std::move(impl)));
}

const TrainConfig& Trainer::config() const { return impl_->config; }
const std::vector<Phase>& Trainer::phases() const { return impl_->data.phases(); }
const ModelConfig& Trainer::model() const { return impl_->parameters.config(); }
const TrainProgress& Trainer::progress() const { return impl_->progress; }
int64_t Trainer::trained_parameters() const { return impl_->optimizer.elements(); }
int64_t Trainer::parameters() const {
  int64_t elements = 0;
  for (const Parameters::Tensor& tensor : impl_->parameters.tensors())
    elements += tensor.spec.shape.elements();
  return elements;
}

Trainer::End Trainer::run(const std::function<void(const StepReport&)>& report,
                          const std::function<bool()>& stop) {
  return impl_->run(report, stop);
}

}  // namespace rwkvx
