#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "training/curriculum.h"
#include "training/run_folder.h"

namespace rwkvx {

/// What one step did.
struct StepReport {
  TrainProgress progress;    ///< behind the step
  int64_t steps = 0;         ///< of the whole run
  int64_t context = 0;       ///< tokens of its sequences
  double loss = 0;           ///< what was minimised, without L2Wrap and selection loss: a weighted mean
  double cross_entropy = 0;  ///< mean of the counted rows, in nats; the loss where nothing weights it
  double smoothed_loss = 0;
  double gradient_norm = 0;  ///< before clipping
  double rate = 0;
  double tokens_per_second = 0, seconds_left = 0;
  std::optional<double> gate_loss, gate_hits, pointing_loss, pointing_hits;
  std::optional<double> answers;  ///< of the step: share of the answers all of whose tokens are the likeliest
  std::optional<double> held_out;  ///< mean cross entropy of the held-out samples, where it was measured
  /// The same share of held-out answers, and where the WKV states are emptied before each question.
  std::optional<double> held_out_answers, answers_after_reset;
  std::vector<std::pair<std::string, double>>
      answers_by_source;  ///< of these two, with their names in metrics
  bool evaluated() const { return held_out || held_out_answers; }
  uint64_t peak_bytes = 0;  ///< of the process
};

/// A training run in its folder. Steps depend on the configuration, the data and the number of the step only,
/// so that a run that was stopped and resumed makes the same steps, bit for bit on the same backend with the
/// same number of threads.
class Trainer {
 public:
  /// A new run. Errors: the folder holds one already; those of reading data and model.
  static std::unique_ptr<Trainer> start(const Path& folder, const TrainConfig& config);
  /// Goes on from the newest checkpoint; a configuration that differs from the saved one replaces it.
  static std::unique_ptr<Trainer> resume(const Path& folder, const TrainConfig& config);
  ~Trainer();

  const TrainConfig& config() const;
  const std::vector<Phase>& phases() const;
  const ModelConfig& model() const;
  const TrainProgress& progress() const;
  int64_t parameters() const;
  int64_t trained_parameters() const;  ///< of them

  enum class End { finished, stopped };
  /// Trains to the last step, or until `stop` says so (asked before each batch): then the steps that are
  /// whole are saved. Errors: a loss or gradient that is not finite (the step is not made; says how to go
  /// on), a full disk.
  End run(const std::function<void(const StepReport&)>& report, const std::function<bool()>& stop);

 private:
  class Impl;
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace rwkvx
