#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "model/weights.h"

namespace rwkvx {

/// The weights of a model in memory that a trainer changes. Every tensor has a master in real precision, the
/// weight that operations read (the master itself; matrices in bf16 precision: the master rounded to bf16),
/// and, unless it is frozen, a gradient. Changes of weights are seen by the next forward pass.
class Parameters {
 public:
  struct Tensor {
    TensorSpec spec;
    View master;    ///< real
    View weight;    ///< what the model computes with; may be the master itself
    View gradient;  ///< real; empty: frozen
  };
  using Choice = std::function<bool(const TensorSpec&)>;

  /// All zero. `trainable` says which tensors get a gradient; by default all.
  Parameters(const ModelConfig& config, Ops& ops, const Choice& trainable = {});
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  const ModelConfig& config() const { return config_; }
  Ops& ops() const { return ops_; }
  /// In for_each() order.
  std::span<const Tensor> tensors() const { return tensors_; }
  /// Null: no such tensor.
  const Tensor* find(std::string_view name) const;

  /// Sets a master, and the weight from it. Values in host memory, any plain float type, as many as the
  /// tensor has.
  void set(const Tensor& tensor, ConstView values);
  /// Sets all. Errors: those of check_tensors; a checkpoint of other sizes.
  void load(const Checkpoint& checkpoint);
  void zero_gradients();

  const Weights& weights() const { return weights_; }
  const Gradients& gradients() const { return gradients_; }

 private:
  ModelConfig config_;
  Ops& ops_;
  Buffer masters_, rounded_, gradient_memory_;
  std::vector<Tensor> tensors_;
  Weights weights_;
  Gradients gradients_;
};

}  // namespace rwkvx
