#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "tensor/shape.h"

namespace rwkvx {

/// What a tensor is for; decides how files shape it, how it is stored in memory, and later what is quantised,
/// decayed or trained.
enum class Role {
  embedding,   ///< [V, C]
  head,        ///< [V, C]
  projection,  ///< [out, in] weight of a product
  low_rank,    ///< [out, in] here; public checkpoints hold it transposed
  norm,        ///< [C] gain or bias of a normalisation
  mix,         ///< [C] token-shift coefficient; [1, 1, C] in public checkpoints
  offset,      ///< [C] w0, a0, v0; [1, 1, C] in public checkpoints
  scale,       ///< [C] k_k, k_a; [1, 1, C] in public checkpoints
  bonus,       ///< [C] r_k; [H, N] in public checkpoints
};

inline bool is_matrix(Role role) {
  return role == Role::embedding || role == Role::head || role == Role::projection || role == Role::low_rank;
}

/// A tensor of the model under its public name without the `rwkv.` prefix, in the layout that the model
/// computes with.
struct TensorSpec {
  std::string name;
  Shape shape;
  Role role;
  bool sparse_input = false;  ///< what it is multiplied with is zero in most places: squared ReLUs
};

/// The shape that RWKV-LM and RWKV-X checkpoints give a tensor.
Shape public_shape(const TensorSpec& spec);

}  // namespace rwkvx
