#pragma once

#include <memory>
#include <string>
#include <vector>

#include "training/curriculum.h"
#include "training/training_data.h"

namespace rwkvx {

/// What a run trains on in each of its phases, and what it is tested on.
class RunData {
 public:
  /// `mixture`: the file to read where the configuration names one. Opens everything: errors come here, and
  /// name the file and the place.
  RunData(const TrainConfig& config, int64_t vocab, const Path& mixture);
  ~RunData();

  const std::vector<Phase>& phases() const { return phases_; }
  const Phase& phase(int64_t step) const { return phases_[phase_at(phases_, step)]; }
  const TrainingData& samples(int64_t step) const { return *samples_[phase_at(phases_, step)]; }

  const TrainingData* held_out() const { return held_out_.get(); }  ///< null: none
  /// Samples with questions that are not trained on, of the mixture in the step's phase. `reset`: WKV states
  /// are emptied before each question, so that only attention can answer. Null where nothing asks.
  const TrainingData* questions(int64_t step, bool reset) const;
  /// The name of a mixture's source.
  const std::string& source(int32_t index) const;

 private:
  struct Questions {
    std::unique_ptr<TrainingData> plain, reset;
  };
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const Mixture> mixture_;
  std::vector<Phase> phases_;
  std::vector<std::unique_ptr<TrainingData>> samples_;  // of each phase
  std::vector<Questions> questions_;                    // the same
  std::unique_ptr<TrainingData> held_out_;
};

/// Reads a mixture for a model of `vocab` tokens. `data`: the token file of sources that name none; empty:
/// there is none.
std::shared_ptr<const Mixture> read_mixture(const Path& file, const std::string& data, uint64_t seed,
                                            const Tokenizer& tokenizer, int64_t vocab);

}  // namespace rwkvx
