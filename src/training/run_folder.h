#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "training/optimizer.h"
#include "training/train_config.h"

namespace rwkvx {

/// Where a run is, beside its tensors. The order of the data and everything random follow from the
/// configuration's seed and the number of the step.
struct TrainProgress {
  int64_t step = 0;          ///< updates done
  uint64_t samples = 0;      ///< consumed: the position in the data
  uint64_t tokens = 0;       ///< trained on
  double smoothed_loss = 0;  ///< exponential mean, bias-corrected with its weight
  double smoothed_weight = 0;
};

/// The folder of a run:
///   config.json                    what it was started with, resolved
///   mixture.json                   the mixture it was started with, if any
///   metrics.jsonl                  a line for each logged step
///   events.out.tfevents.…          the same for TensorBoard
///   checkpoints/step-00001000/     model.safetensors (float32 masters; every command reads it),
///                                  optimizer.safetensors (moments), progress.json
/// A checkpoint is written beside its name and renamed when it is whole; what a crash leaves is removed
/// later.
class RunFolder {
 public:
  explicit RunFolder(Path path) : path_(std::move(path)) {}
  const Path& path() const { return path_; }
  Path config_file() const { return path_ / "config.json"; }
  Path mixture_file() const { return path_ / "mixture.json"; }
  Path metrics_file() const { return path_ / "metrics.jsonl"; }

  /// Errors: it exists and holds a run already.
  void create(const TrainConfig& config) const;
  /// What a resumed run goes on with.
  void replace_config(const TrainConfig& config) const;
  /// Copies a mixture, so that the run can go on with it whatever happens to the file.
  void keep_mixture(const Path& file) const;
  /// The configuration that was saved.
  TrainConfig config() const;

  /// Steps of the whole checkpoints, rising.
  std::vector<int64_t> checkpoints() const;
  Path checkpoint(int64_t step) const;
  /// Keeps the newest `keep`. Errors: a full disk; the checkpoints before are then still there.
  void save(const TrainProgress& progress, const Parameters& parameters, const Optimizer& optimizer,
            int64_t keep) const;
  /// Errors: a damaged or missing file, tensors of other sizes; names the file.
  TrainProgress load(int64_t step, Parameters& parameters, Optimizer& optimizer) const;
  /// The sizes of a checkpoint's model. Errors: as for load().
  ModelConfig model_config(int64_t step) const;

  /// Cuts metrics.jsonl behind the line of `step`: the steps that a resumed run makes again.
  void cut_metrics(int64_t step) const;

 private:
  Path path_;
};

}  // namespace rwkvx
