#pragma once

#include <functional>
#include <optional>

#include "model/checkpoint.h"

namespace rwkvx {

struct WriteOptions {
  FileFormat format = FileFormat::gguf;
  std::optional<DType>
      dtype;  ///< of every tensor (GGUF: of every matrix; vectors are f32); none: each as it is
  std::optional<EmbeddedVocabulary> vocabulary;  ///< GGUF only; without one, tokens are written as unused
  /// Instead of dtype: the type of each matrix, given what it is found in.
  std::function<DType(const TensorSpec&, DType found)> matrix_type = {};
};

/// Writes a checkpoint in another format: `.pth` and `.safetensors` with the names and shapes of RWKV-LM and
/// RWKV-X, GGUF with llama.cpp's for plain RWKV-7 (it runs there) and architecture `rwkvx` for hybrids.
/// docs/formats.md. Errors: those of check_tensors; values that the type cannot hold (f16), by name;
/// quantised matrices in a format other than GGUF.
void write_checkpoint(const Checkpoint& checkpoint, const Path& path, const WriteOptions& options,
                      const Progress& progress = {});

}  // namespace rwkvx
