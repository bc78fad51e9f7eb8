#pragma once

#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "model/model.h"

/// What tests of models share: files, models on backends, forward passes in pieces, comparisons.
namespace rwkvx::test {

/// tests/data and models of the repository.
Path data(const std::string& file);
Path models(const std::string& file);

/// A folder that goes away with its owner.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  Path operator/(const std::string& file) const { return path_ / file; }
  /// Names of what is inside, sorted.
  std::vector<std::string> files() const;

 private:
  Path path_;
};

/// Why a backend cannot be used here: no GPU. Empty when it can. Tests skip with it.
std::string unavailable(const std::string& backend);

std::shared_ptr<const Model> open_model(const Path& path, const std::string& backend, Precision precision,
                                        const CheckpointOptions& options = {}, const KvOptions& kv = {});

/// A GGUF file of `source` with the types that QuantisePlan chooses for `type`.
void write_quantised(const Checkpoint& source, DType type, const Path& path);

/// What a golden expects.
struct Golden {
  Path model;
  CheckpointOptions options;
  std::vector<std::vector<int32_t>> tokens;  // [B][T]
  Buffer logits;                             // [B, T, V]
  std::vector<Buffer> states;                // [B, H, N, N] for each RWKV-7 block
};
Golden read_golden(const std::string& name);

std::vector<int32_t> random_tokens(size_t count, int64_t vocab, uint64_t seed);

/// Lengths that sum to `total`, each from 1 to `longest`.
std::vector<size_t> random_split(size_t total, size_t longest, uint64_t seed);

/// Continues `state` with the tokens, in calls of the given lengths; logits [T, V].
std::vector<float> run(const Model& model, State& state, std::span<const int32_t> tokens,
                       std::span<const size_t> pieces);
/// In one call.
std::vector<float> run(const Model& model, State& state, std::span<const int32_t> tokens);

/// How far two lists are apart. NaN or infinity on either side makes every measure infinite.
struct Distance {
  double max = 0;       ///< max |got - expected| / max |expected|
  double rms = 0;       ///< ‖got - expected‖ / ‖expected‖
  bool bitwise = true;  ///< every bit equal
};
Distance distance(std::span<const float> got, std::span<const float> expected);

/// The root mean square error of a row of `width`, relative to that of all expected values, that `share` of
/// the rows stay within. NaN or infinity on either side makes it infinite.
double row_error(std::span<const float> got, std::span<const float> expected, size_t width, double share);

std::span<const float> floats(const Buffer& buffer);

/// Everything that a state holds that later tokens can see: recurrent part, used KV rows, key sums.
std::vector<float> contents(const State& state);

}  // namespace rwkvx::test
