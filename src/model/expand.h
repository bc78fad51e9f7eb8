#pragma once

#include "model/checkpoint.h"

namespace rwkvx {

/// Block expansion (LLaMA Pro, arXiv 2401.02415; RWKV-X, arXiv 2504.21463): an RWKV-7 model with
/// `sparse_blocks` sparse blocks put between its blocks, which computes exactly what the RWKV-7 model does.
/// Each is a copy of the RWKV-7 block before it (norms, receptance, key and value of the time mix, the
/// channel mix), except that `att.output` and `ffn.value` are zero. Views of the result are of the source's
/// memory. chunk_size and top_k come from `options`, or are the defaults. `copy_outputs` copies those two
/// matrices as well, so that the result computes something else from the start: for comparison. Errors: a
/// model that has sparse blocks; more sparse blocks than others; none.
Checkpoint expand(const Checkpoint& source, int64_t sparse_blocks, const CheckpointOptions& options = {},
                  bool copy_outputs = false);

}  // namespace rwkvx
