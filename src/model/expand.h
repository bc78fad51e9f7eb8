#pragma once

#include "model/checkpoint.h"

namespace rwkvx {

struct Expansion {
  int64_t sparse_blocks = 0;
  CheckpointOptions chunks = {};  ///< else the defaults of ModelConfig
  std::string sparse_after = {};  ///< as place_sparse_blocks() takes it
  bool copy_outputs = false;      ///< copy `att.output` and `ffn.value` too: for comparison
};

/// Block expansion (LLaMA Pro, arXiv 2401.02415; RWKV-X, arXiv 2504.21463): an RWKV-7 model with sparse
/// blocks put between its blocks, which computes exactly what the RWKV-7 model does. Each is a copy of the
/// RWKV-7 block before it (norms, receptance, key and value of the time mix, the channel mix), except that
/// `att.output` and `ffn.value` are zero; with copy_outputs the result computes something else from the
/// start. Views of the result are of the source's memory. Errors: a model that has sparse blocks; more sparse
/// blocks than others; none; those of place_sparse_blocks().
Checkpoint expand(const Checkpoint& source, const Expansion& expansion);

}  // namespace rwkvx
