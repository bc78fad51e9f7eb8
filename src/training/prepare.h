#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "base/progress.h"
#include "training/documents.h"
#include "training/token_file.h"

namespace rwkvx {

struct PrepareOptions {
  TextOptions text;
  std::optional<TokenId> document_end;  ///< token behind each document; none: nothing is added
  bool skip_bad_lines = false;          ///< count JSON lines that cannot be used instead of stopping
  int threads = 0;                      ///< 0: one for each core
  size_t piece_bytes = size_t{1} << 20;
};

struct PrepareReport {
  uint64_t bytes = 0, documents = 0, tokens = 0;
  uint64_t empty_documents = 0;  ///< left out
  uint64_t bad_lines = 0;        ///< left out
};

/// Tokenizes text files into the token file `output`, in the order of the inputs and of their documents,
/// with memory for a few pieces for each thread. Progress is in bytes of text. Errors name the file and the
/// line; nothing is written then.
PrepareReport prepare_tokens(std::span<const Path> inputs, const Path& output, const Tokenizer& tokenizer,
                             const PrepareOptions& options, const Progress& progress = {});

}  // namespace rwkvx
