#pragma once

#include <map>
#include <memory>
#include <optional>

#include "training/mixture/resets.h"
#include "training/mixture/sample_source.h"
#include "training/training_data.h"

namespace rwkvx {

/// Losses of tokens count so much, by what they are.
struct RoleWeights {
  float text = 1, random = 1, answer = 1;
  /// Of the first token of what an answer says again: where it is decided what is looked for.
  std::optional<float> start{};  ///< none: as `answer`
  float of(TokenRole role) const {
    return role == TokenRole::text ? text : role == TokenRole::random ? random : answer;
  }
};

/// A stretch of steps with settings of its own; 0 or nothing: as elsewhere.
struct MixturePhase {
  int64_t steps = 0;                                    ///< 0: to the end, of the last phase
  int64_t context = 0;                                  ///< tokens of each sequence
  int64_t batch = 0;                                    ///< sequences computed at a time
  double lr = 0;                                        ///< peak learning rate
  std::optional<std::map<std::string, double>> shares;  ///< by the sources' names; others get nothing
  std::optional<ResetRule> resets;
};

/// What a run trains on, as a JSON file says it: docs/formats.md has the fields.
class Mixture {
 public:
  struct Source {
    std::string kind, name;
    double share = 0;
    float weight = 1;  ///< factor of its tokens' weights
    RoleWeights weights;
    std::optional<ResetRule> resets;
    IntRange split{1, 1};  ///< sequences that a sample is split into
    std::unique_ptr<SampleSource> maker;
  };

  /// `place` is the file's name in messages. Errors name the place and the field: no JSON, unknown kinds and
  /// fields, values out of range, shares that are all 0, data that cannot be read.
  Mixture(const std::string& json, const std::string& place, const SourceSetup& setup);

  const std::string& place() const { return place_; }
  const std::vector<Source>& sources() const { return sources_; }
  const std::vector<MixturePhase>& phases() const { return phases_; }
  const ResetRule& resets() const { return resets_; }

 private:
  std::string place_;
  std::vector<Source> sources_;
  std::vector<MixturePhase> phases_;
  ResetRule resets_;
};

struct MixtureView {
  int64_t context = 1024;               ///< tokens of each sample
  uint64_t seed = 0;                    ///< other seeds give other samples
  int64_t vocab = 0;                    ///< tokens must be below it
  const MixturePhase* phase = nullptr;  ///< its shares and resets; null: the mixture's. Not kept
  /// For tests of what was learned: these resets everywhere, only sources with answers, none of them split.
  std::optional<ResetRule> asking;
};

/// Whether a source with a share asks for something.
bool asks(const Mixture& mixture, const MixturePhase& phase);

/// Sample i depends on the mixture, the view and i only. It has `context` rows, in one or several sequences.
/// Errors: a source that needs more than `context`; shares that are all 0; no source with answers.
std::unique_ptr<TrainingData> make_mixture_data(std::shared_ptr<const Mixture> mixture,
                                                const MixtureView& view);

}  // namespace rwkvx
